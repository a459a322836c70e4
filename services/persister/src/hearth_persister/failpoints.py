"""Steps at which a test may have the process die. Off unless `HEARTH_FAILPOINT` names one.

persist.after_put          a segment is durable in a store, and neither indexed nor acknowledged
persist.between_stores     the first store has a segment, the others have not begun to write theirs
persist.before_link        a segment is encoded, nothing of it is in the store
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Final

_log = logging.getLogger(__name__)

NAMES: Final = ("persist.before_link", "persist.after_put", "persist.between_stores")


class Failpoints:
    """`chosen` is a name, or `name:n` to die at the nth time."""

    def __init__(self, chosen: str = "") -> None:
        self._name, _, count = chosen.partition(":")
        if self._name and self._name not in NAMES:
            raise ValueError(f"there is no failpoint {self._name!r}; there are {', '.join(NAMES)}")
        self._left = int(count or 1)
        self._one_at_a_time = asyncio.Lock()

    def hit(self, name: str) -> None:
        if name != self._name:
            return
        self._left -= 1
        if self._left <= 0:
            _log.warning("failpoint %s: the process ends here", name)
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.asynccontextmanager
    async def put(self) -> AsyncIterator[None]:
        """Around a store's write. Only where the test is about the moment between two stores do they wait for each other."""
        if self._name != "persist.between_stores":
            yield
            return
        async with self._one_at_a_time:
            yield
            self.hit("persist.between_stores")
