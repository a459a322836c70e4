"""A container's readings and limits, straight from the kernel's files: version 1, version 2, and hybrids of both.

Files are opened once and read in place, so that a reading costs microseconds; the engine's own stats call costs a second.
"""

import contextlib
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hearth_executor.domain.limits import Limits

#: The kernel's default accounting period. A short one spreads a busy function's waits more evenly, but doubles the time of
#: a single call that needs 20 ms of processor; most functions are called now and then, so the long one serves them better.
CPU_PERIOD_US = 100_000
CPU_QUOTA_US_MIN = 1_000

#: Of a function that asked for one processor; when all are busy, each gets by its share.
CPU_SHARES = 1024
CPU_WEIGHT = 100

#: Readings from which their cost is told: 3 ms, once, and enough that a pause of the machine does not count.
COST_READINGS = 200

#: The controllers we use. In a hybrid, version 1 has them and version 2 has none.
CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "freezer")


@dataclass(frozen=True, slots=True)
class Reading:
    memory_bytes: int
    peak_bytes: int
    """Since the last reset, or since the container's start where the kernel cannot reset."""
    cpu_us: int


@dataclass(frozen=True, slots=True)
class Events:
    """Counters since the container's start; two readings tell what happened in between."""

    oom_kills: int
    """Processes killed for memory, children too: the engine's own flag speaks of the first process only."""
    pids_refused: int
    """Forks refused for the limit on processes."""


class Group(Protocol):
    """One container's control group. After `close` nothing may be called; once the container is gone readings raise
    `OSError`."""

    @property
    def version(self) -> int: ...

    @property
    def path(self) -> Path:
        """The folder of its memory files."""
        ...

    def read(self) -> Reading: ...

    def reset_peak(self) -> bool:
        """Start the peak anew. False where the kernel cannot: measure the child's own usage then."""
        ...

    def events(self) -> Events: ...

    def pids(self) -> list[int]:
        """Every process, as numbered in our own namespace."""
        ...

    def set_limits(self, limits: Limits) -> bool:
        """False where that is not permitted from here: the engine must be asked."""
        ...

    def freeze(self) -> bool: ...

    def thaw(self) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy: `controllers` is empty for version 2."""

    version: int
    controllers: frozenset[str]
    root: str
    point: str


def parse_mounts(mountinfo: str) -> list[Mount]:
    mounts = list[Mount]()
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not separator or len(before) < 5 or len(after) < 3:
            continue
        if after[0] == "cgroup2":
            mounts.append(Mount(version=2, controllers=frozenset(), root=_unescape(before[3]), point=_unescape(before[4])))
        elif after[0] == "cgroup":
            controllers = frozenset(after[2].split(",")).intersection(CONTROLLERS)
            if controllers:
                mounts.append(Mount(version=1, controllers=controllers, root=_unescape(before[3]), point=_unescape(before[4])))
    return mounts


def parse_membership(text: str) -> dict[str, str]:
    """`/proc/<pid>/cgroup` as controller -> path; version 2's is under the empty name."""
    found = dict[str, str]()
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[""] = path
        else:
            found.update(dict.fromkeys(controllers.split(","), path))
    return found


def folders(mounts: list[Mount], membership: dict[str, str]) -> dict[str, Path]:
    """Controller -> folder; version 2's is under the empty name. Only what can be reached through a mount of ours."""
    found = dict[str, Path]()
    for mount in mounts:
        for controller in mount.controllers or {""}:
            path = membership.get(controller)
            folder = None if path is None else _below(mount, path)
            if folder is not None:
                found.setdefault(controller, folder)
    return found


def locate(pid: int, *, proc: Path = Path("/proc")) -> "Group | None":
    """The control group of a process, opened. None where its files cannot be read from here."""
    try:
        mounts = parse_mounts((proc / "self/mountinfo").read_text())
        found = folders(mounts, parse_membership((proc / str(pid) / "cgroup").read_text()))
        if "memory" in found:
            return GroupV1(found)  # raises where a file is missing: the container has ended
        if "" in found and (found[""] / "memory.current").exists():
            return GroupV2(found[""])
    except OSError:
        pass
    return None


def names_container(pid: int, container_id: str, *, proc: Path = Path("/proc")) -> bool:
    """Whether the kernel says that this process lives in that container: a pid alone proves nothing."""
    try:
        membership = parse_membership((proc / str(pid) / "cgroup").read_text())
    except OSError:
        return False
    return any(container_id in path for path in membership.values())


def reading_us(group: "Group", *, clock: Callable[[], float] = time.perf_counter) -> float:
    """What one reading of this group costs. Raises `OSError` once its container is gone."""
    took = list[float]()
    for _ in range(COST_READINGS):
        started = clock()
        group.read()
        took.append((clock() - started) * 1e6)
    return statistics.median(took)


def cpu_quota_us(cpus: float) -> int:
    return max(CPU_QUOTA_US_MIN, int(cpus * CPU_PERIOD_US))


class GroupV1:
    """Version 1: one folder per controller."""

    version = 1

    def __init__(self, found: dict[str, Path]) -> None:
        self._folders = found
        self._files = _Files()
        self.path = found["memory"]
        # Asked for at every call: a path is slow to put together.
        self._max_usage = self.path / "memory.max_usage_in_bytes"
        self._oom_control = self.path / "memory.oom_control"
        self._pids_events = found["pids"] / "pids.events" if "pids" in found else None
        opened = self._files.descriptor
        try:
            self._usage = opened(self.path / "memory.usage_in_bytes", os.O_RDONLY)
            self._peak = opened(self._max_usage, os.O_RDONLY)
            self._cpu = opened(found["cpuacct"] / "cpuacct.usage", os.O_RDONLY) if "cpuacct" in found else -1
        except OSError:
            self._files.close()
            raise

    def read(self) -> Reading:
        return Reading(
            memory_bytes=int(os.pread(self._usage, 32, 0)),
            peak_bytes=int(os.pread(self._peak, 32, 0)),
            cpu_us=int(os.pread(self._cpu, 32, 0)) // 1000 if self._cpu >= 0 else 0,
        )

    def reset_peak(self) -> bool:
        return self._files.write(self._max_usage, "0")

    def events(self) -> Events:
        return Events(
            oom_kills=self._files.field(self._oom_control, b"oom_kill"),
            pids_refused=self._files.field(self._pids_events, b"max") if self._pids_events else 0,
        )

    def pids(self) -> list[int]:
        return _numbers(self.path / "cgroup.procs")

    def set_limits(self, limits: Limits) -> bool:
        """Memory without swap: the sum of both may never be below the memory alone, so growing and shrinking differ."""
        memory, both = self.path / "memory.limit_in_bytes", self.path / "memory.memsw.limit_in_bytes"
        try:
            growing = limits.memory_bytes > self._files.integer(memory)
        except OSError:
            return False
        order = [memory]
        if both.exists():
            order = [both, memory] if growing else [memory, both]
        done = True
        for file in order:
            done &= self._files.write(file, str(limits.memory_bytes))
        if "cpu" in self._folders:
            cpu, quota_us = self._folders["cpu"], cpu_quota_us(limits.cpus)
            self._files.write(cpu / "cpu.cfs_burst_us", "0")  # it may not be above the quota, which may shrink
            done &= self._files.write(cpu / "cpu.cfs_period_us", str(CPU_PERIOD_US))
            done &= self._files.write(cpu / "cpu.cfs_quota_us", str(quota_us))
            done &= self._files.write(cpu / "cpu.shares", str(max(2, int(limits.cpus * CPU_SHARES))))
            self._files.write(cpu / "cpu.cfs_burst_us", str(quota_us))  # kernel 5.14 and later
        if "pids" in self._folders:
            done &= self._files.write(self._folders["pids"] / "pids.max", str(limits.pids))
        return done

    def freeze(self) -> bool:
        return "freezer" in self._folders and self._files.write(self._folders["freezer"] / "freezer.state", "FROZEN")

    def thaw(self) -> bool:
        return "freezer" in self._folders and self._files.write(self._folders["freezer"] / "freezer.state", "THAWED")

    def close(self) -> None:
        self._files.close()


class GroupV2:
    """Version 2: one folder."""

    version = 2

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files = _Files()
        #: A reset counts for the descriptor it was written through (kernel 6.12 and later); older kernels refuse to open
        #: this file for writing.
        self._peak = _open(folder / "memory.peak", os.O_RDWR)
        self._current = self._files.descriptor(folder / "memory.current", os.O_RDONLY)

    def read(self) -> Reading:
        current = int(os.pread(self._current, 32, 0))
        return Reading(memory_bytes=current, peak_bytes=self._read_peak(current), cpu_us=self._cpu_us())

    def _read_peak(self, current: int) -> int:
        if self._peak >= 0:
            return int(os.pread(self._peak, 64, 0))
        try:
            return self._files.integer(self.path / "memory.peak")
        except FileNotFoundError:  # before kernel 5.19
            return current

    def _cpu_us(self) -> int:
        return self._files.field(self.path / "cpu.stat", b"usage_usec")

    def reset_peak(self) -> bool:
        if self._peak < 0:
            return False
        try:
            os.pwrite(self._peak, b"reset", 0)
        except OSError:
            return False
        return True

    def events(self) -> Events:
        return Events(
            oom_kills=self._files.field(self.path / "memory.events", b"oom_kill"),
            pids_refused=self._files.field(self.path / "pids.events", b"max"),
        )

    def pids(self) -> list[int]:
        return _numbers(self.path / "cgroup.procs")

    def set_limits(self, limits: Limits) -> bool:
        done = self._files.write(self.path / "memory.max", str(limits.memory_bytes))
        if (self.path / "memory.swap.max").exists():
            done &= self._files.write(self.path / "memory.swap.max", "0")
        quota_us = cpu_quota_us(limits.cpus)
        self._files.write(self.path / "cpu.max.burst", "0")
        done &= self._files.write(self.path / "cpu.max", f"{quota_us} {CPU_PERIOD_US}")
        done &= self._files.write(self.path / "cpu.weight", str(min(10_000, max(1, int(limits.cpus * CPU_WEIGHT)))))
        self._files.write(self.path / "cpu.max.burst", str(quota_us))
        return self._files.write(self.path / "pids.max", str(limits.pids)) and done

    def freeze(self) -> bool:
        return self._files.write(self.path / "cgroup.freeze", "1")

    def thaw(self) -> bool:
        return self._files.write(self.path / "cgroup.freeze", "0")

    def close(self) -> None:
        self._files.close()
        if self._peak >= 0:
            os.close(self._peak)
            self._peak = -1


class _Files:
    """Files that stay open between readings: the kernel writes them anew at every read from their beginning."""

    def __init__(self) -> None:
        self._open = dict[tuple[Path, int], int]()

    def descriptor(self, path: Path, flags: int) -> int:
        descriptor = self._open.get((path, flags))
        if descriptor is None:
            descriptor = self._open[path, flags] = os.open(path, flags | os.O_CLOEXEC)
        return descriptor

    def text(self, path: Path) -> bytes:
        return os.pread(self.descriptor(path, os.O_RDONLY), 4096, 0)

    def integer(self, path: Path) -> int:
        return int(self.text(path))

    def field(self, path: Path, name: bytes) -> int:
        """One line `name value` of a file; 0 where this kernel lacks the file or the line."""
        try:
            text = self.text(path)
        except FileNotFoundError:
            return 0
        for line in text.splitlines():
            word, _, value = line.partition(b" ")
            if word == name:
                return int(value)
        return 0

    def write(self, path: Path, value: str) -> bool:
        try:
            os.pwrite(self.descriptor(path, os.O_WRONLY), value.encode(), 0)
        except OSError:
            return False
        return True

    def close(self) -> None:
        for descriptor in self._open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._open.clear()


def _below(mount: Mount, path: str) -> Path | None:
    """Where a group's path lies under a mount, which may itself show only a part of the hierarchy."""
    root = mount.root.rstrip("/")
    if ".." in path.split("/") or not (path == root or path.startswith(root + "/")):
        return None  # outside of what this mount shows
    return Path(mount.point + path[len(root) :])


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return -1


def _numbers(path: Path) -> list[int]:
    try:
        return [int(line) for line in path.read_text().split()]
    except OSError:
        return []
