"""One active, the others standing by: a key with a time to live, renewed by its holder, fenced by its revision.

Own code on plain publishes: the library's `create` keeps failing after an expiry, and its updates drop the time to live.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from hearth_contracts import streams
from hearth_contracts.keys import Lease
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, WrongLastSequence
from hearth_kit.kv import Bucket

_log = logging.getLogger(__name__)

TTL_S: Final = 5
RENEW_S: Final = 1.5
#: A standby looks this often, so that a dead holder is followed within the time to live and a second.
LOOK_S: Final = 0.5


class LeaseLost(Exception):
    """Somebody else holds the role now, or the broker could not be asked in time."""


class Held:
    """A role that is ours. `epoch` rises with every new holder; `lost` is set when it is ours no longer."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.lost = asyncio.Event()


class Role:
    """Takes, keeps and gives back one role."""

    def __init__(self, *, bus: Bus, role: str, holder: str, clock: Clock) -> None:
        self._bucket = Bucket(bus, streams.LEASES, Lease)
        self._role = role
        self._holder = holder
        self._clock = clock
        self._epoch_floor = 0

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Held]:
        """Wait until the role is ours; keep it as long as the block runs, or until `lost` is set."""
        revision = await self._take()
        held = Held(epoch=self._epoch(revision))
        keeper = asyncio.get_running_loop().create_task(self._keep(held, revision), name=f"lease-{self._role}")
        try:
            yield held
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            if not held.lost.is_set():
                await self._give_back()

    def _epoch(self, revision: int) -> int:
        # The bucket lives in memory and its revisions start anew with the broker; time keeps epochs rising across that.
        self._epoch_floor = max(self._epoch_floor + 1, int(self._clock.now() * 1000), revision)
        return self._epoch_floor

    async def _take(self) -> int:
        while True:
            try:
                entry = await self._bucket.get(self._role)
                if entry is None or entry.value.holder == self._holder:
                    last = await self._last_revision()
                    return await self._bucket.update(self._role, self._lease(), revision=last, ttl_s=TTL_S)
            except WrongLastSequence:
                pass
            except BusError as error:
                _log.debug("lease %s: %s", self._role, error)
            await asyncio.sleep(LOOK_S)

    async def _last_revision(self) -> int:
        """Of the key, also when only the broker's own mark of an expiry is left on it."""
        return await self._bucket.last_revision(self._role)

    async def _keep(self, held: Held, revision: int) -> None:
        renewed_at = self._clock.monotonic()
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                revision = await asyncio.wait_for(
                    self._bucket.update(self._role, self._lease(), revision=revision, ttl_s=TTL_S), timeout=RENEW_S
                )
                renewed_at = self._clock.monotonic()
            except WrongLastSequence:
                entry = await self._bucket.get(self._role)
                if entry is not None and entry.value.holder == self._holder:
                    revision = entry.revision  # our own write, whose acknowledgement was lost
                    renewed_at = self._clock.monotonic()
                    continue
                held.lost.set()
                return
            except (BusError, TimeoutError):
                # The broker is away: ours until the time to live has passed, as nobody else can have taken it.
                if self._clock.monotonic() - renewed_at > TTL_S:
                    held.lost.set()
                    return

    async def _give_back(self) -> None:
        try:
            await asyncio.wait_for(self._bucket.delete(self._role), timeout=1.0)
        except (BusError, TimeoutError) as error:
            _log.info("lease %s was not given back: %s", self._role, error)

    def _lease(self) -> Lease:
        return Lease(holder=self._holder, role=self._role, at=self._clock.now())
