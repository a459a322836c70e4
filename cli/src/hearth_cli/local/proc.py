"""Processes of this machine: the same one still, and tied to its parent."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def start_mark(pid: int) -> str:
    """Tells a process from a later one with the same pid: its start time in the kernel's ticks; "" where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "" if sys.platform == "linux" or not _exists(pid) else "?"
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state == "Z" else rest[18]


def is_same(pid: int, mark: str) -> bool:
    """Whether the process that had this pid and mark still lives."""
    return bool(mark) and start_mark(pid) == mark


def send(pid: int, mark: str, number: signal.Signals) -> bool:
    """Signal a process if it is still the same one."""
    if not is_same(pid, mark):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def die_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: the kernel kills the child when its parent dies, however that comes."""
    parent = os.getpid()
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return tie


def of_platform(platform: str) -> Iterator[int]:
    """Every process that was started for this platform, whoever its parent is now."""
    wanted = f"HEARTH_PLATFORM={platform}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and int(entry.name) != os.getpid():
            yield int(entry.name)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
