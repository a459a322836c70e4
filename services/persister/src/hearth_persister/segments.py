"""Segments made for several stores at once: the same part of the stream is the same bytes, so it is packed once."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Final

from hearth_persister.domain import segment
from hearth_persister.domain.entry import Entry
from hearth_persister.domain.segment import Encoded, StoredBody

#: Packed segments kept for the other stores, which are mostly a moment behind.
KEPT: Final = 2

_Key = tuple[str, int, int, tuple[int, ...], tuple[tuple[int, tuple[StoredBody, ...]], ...]]


class Encoder:
    """Packs in a thread."""

    def __init__(self, thread: Executor, *, stores: int) -> None:
        self._thread = thread
        self._shared = stores > 1
        self._made: OrderedDict[_Key, asyncio.Future[Encoded]] = OrderedDict()

    async def encode(
        self, *, epoch: str, first: int, last: int, entries: Sequence[Entry], bodies: Mapping[int, tuple[StoredBody, ...]]
    ) -> Encoded:
        if not self._shared:
            return await self._encode(epoch, first, last, entries, bodies)
        # Within an epoch a sequence stands for one message, whichever store asks.
        key = (epoch, first, last, tuple(entry.sequence for entry in entries), tuple(sorted(bodies.items())))
        making = self._made.get(key)
        if making is None:
            making = self._encode(epoch, first, last, entries, bodies)
            self._made[key] = making
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        return await asyncio.shield(making)

    def _encode(
        self, epoch: str, first: int, last: int, entries: Sequence[Entry], bodies: Mapping[int, tuple[StoredBody, ...]]
    ) -> "asyncio.Future[Encoded]":
        return asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: segment.encode(epoch=epoch, first=first, last=last, entries=entries, bodies=bodies)
        )
