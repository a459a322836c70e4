"""A user id of its own for every container, so that two never share a kernel-side limit, a key or a signal right.

Executors on one machine share the range: each holds whole slices of it, and a slice is held by listening on an abstract
socket that bears its number, which the kernel lets go when the holder dies.
"""

import socket
import zlib
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from hearth_executor.errors import NoRoom

#: Above everything that distributions, systemd's containers and subordinate ids use, below the sign bit.
FIRST_UID = 0x77000000

#: Where the engine maps ids into a range of its own (user namespaces, rootless), only 65536 of them exist.
FIRST_UID_MAPPED = 20_000

SLICE = 256  # uids held at once; an executor with more containers takes another slice
SLICES = 128


@dataclass(frozen=True, slots=True)
class UidRange:
    first: int = FIRST_UID
    count: int = SLICE * SLICES

    def __post_init__(self) -> None:
        if self.first < 1000 or self.count < SLICE or self.first + self.count > 2**31:
            raise ValueError(f"uids {self.first}+{self.count}: at least {SLICE} of them, from 1000 to 2147483647")


class Uids:
    """Hands out uids, the longest unused first. Not more than the range holds. `avoid`: those seen on the engine at the
    start, a dead executor's orphans among them."""

    def __init__(self, *, uids: UidRange, owner: str, avoid: Collection[int] = ()) -> None:
        self._range = uids
        self._avoid = frozenset(avoid)
        self._start = zlib.crc32(owner.encode()) % (uids.count // SLICE)
        self._locks = dict[int, socket.socket]()
        self._free = deque[int]()

    def take(self) -> int:
        """A uid that no container has. Raises `NoRoom`."""
        while not self._free:
            self._claim()
        return self._free.popleft()

    def give_back(self, uid: int) -> None:
        self._free.append(uid)

    def close(self) -> None:
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()
        self._free.clear()

    def _claim(self) -> None:
        """Take another slice. Those of others are tried each time: their holder may have ended."""
        slices = self._range.count // SLICE
        for number in range(self._start, self._start + slices):
            first = self._range.first + number % slices * SLICE
            if first in self._locks:
                continue
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                lock.bind(f"\0hearth-uids-{first}")
            except OSError:
                lock.close()
                continue
            self._locks[first] = lock
            self._free.extend(uid for uid in range(first, first + SLICE) if uid not in self._avoid)
            if self._free:
                return
        raise NoRoom(f"all {self._range.count} uids from {self._range.first} are taken by containers on this machine")
