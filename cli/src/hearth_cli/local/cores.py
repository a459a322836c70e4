"""Which cores the services of a platform run on: all, but as few as they need while the machine is full of functions.

A call wakes five processes and the broker, and each runs for a tenth of a millisecond. Where functions run in between, on
the same core, the caches hold somebody else's code and data each time, and the same work costs the services half as much again.
Kept together on cores of their own they find each other's: the Python ones share most of what they run. Functions may use
every core all the time, so nothing is taken from them.
"""

import asyncio
import contextlib
import math
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Seconds between two looks.
LOOK_S: Final = 0.25
#: A machine is full while less than this part of it is idle.
FULL_IDLE: Final = 0.06
#: Looks in a row at a full machine before the services are kept together: a short burst is over before it would help.
FULL_LOOKS: Final = 2
#: Together they need less than apart: measured, they then do in one core's time what had taken them 1.3.
SAVED: Final = 1.15
#: Where they use less of a core than this there is little to gain.
WORTH: Final = 0.5
#: More of the machine idle than this while they are kept together: the load is over, or they are what is short of cores.
SHORT_IDLE: Final = 0.1
#: The kernel's clock ticks a second.
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the time between two looks went to, in cores."""

    cores: int
    idle: float
    services: float


@dataclass(frozen=True, slots=True)
class Choice:
    kept: int = 0
    """So many cores for the services; 0: all."""
    full_looks: int = 0


def choose(before: Choice, seen: Seen) -> Choice:
    if before.kept:
        enough = seen.idle <= SHORT_IDLE * seen.cores and seen.services >= before.kept * WORTH / 2
        return before if enough else Choice()
    if seen.idle > FULL_IDLE * seen.cores:
        return Choice()
    looks = before.full_looks + 1
    kept = math.ceil(seen.services / SAVED)
    if looks < FULL_LOOKS or kept >= seen.cores or seen.services < kept * WORTH:
        return Choice(full_looks=looks)
    return Choice(kept, looks)


async def keep_together(pids: Callable[[], Iterable[int]], *, platform: str) -> None:
    """Look and choose for as long as the platform runs. `pids`: its processes, which change when one is started again."""
    if not hasattr(os, "sched_setaffinity") or len(mine := sorted(os.sched_getaffinity(0))) < 2:
        return
    # Platforms side by side begin at different cores.
    start = zlib.crc32(platform.encode()) % len(mine)
    cores = mine[start:] + mine[:start]
    choice = Choice()
    spent, idle = _spent(pids()), _idle(cores)
    at = asyncio.get_running_loop().time()
    while True:
        await asyncio.sleep(LOOK_S)
        now = asyncio.get_running_loop().time()
        took, at = now - at, now
        spent_before, idle_before = spent, idle
        spent, idle = _spent(pids()), _idle(cores)
        # A process that was started meanwhile counts from its next look on.
        services = sum(ticks - spent_before.get(pid, ticks) for pid, ticks in spent.items())
        seen = Seen(len(cores), (idle - idle_before) / _TICKS_PER_S / took, services / _TICKS_PER_S / took)
        before, choice = choice, choose(choice, seen)
        if choice.kept or before.kept:
            allowed = cores[: choice.kept] if choice.kept else cores
            for pid in spent:
                _run_on(pid, allowed)


def _run_on(pid: int, cores: Iterable[int]) -> None:
    """All threads of a process; those that are started later inherit it."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


def _spent(pids: Iterable[int]) -> dict[int, int]:
    """Ticks that each living process has used so far."""
    spent: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            spent[pid] = int(fields[11]) + int(fields[12])
    return spent


def _idle(cores: Iterable[int]) -> int:
    """Ticks that these cores have been idle so far, waiting for a disk or for nothing."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
        name, *fields = line.split()
        if name in wanted:
            ticks += int(fields[3]) + int(fields[4])
    return ticks
