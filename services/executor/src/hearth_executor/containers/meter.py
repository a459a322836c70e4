"""What a call used and what the kernel did to it, from the container's control group; nothing a function says counts."""

import contextlib
from dataclasses import dataclass

from hearth_executor.containers.cgroup import Events, Group

_NOTHING = Events(oom_kills=0, pids_refused=0)


@dataclass(frozen=True, slots=True)
class Kills:
    """What the kernel has done since the last look."""

    memory: bool
    """It has killed a process for memory, be it the call's own or one below it."""
    processes: bool
    """It has refused a new process."""


class Meter:
    """All of it tolerates a container that is gone, and one whose files cannot be read from here."""

    def __init__(self, group: Group | None) -> None:
        self._group = group
        self._overhead_bytes = 0
        self._resets = False
        self._seen = _NOTHING

    def before_load(self) -> None:
        self._overhead_bytes = self._memory_bytes()

    def after_load(self) -> None:
        """The overhead is the platform's part, which no function is charged for. What the import has left in memory is the
        function's own; what unpacking took is given back by now, so the lower of both readings is the platform's."""
        self._overhead_bytes = min(self._overhead_bytes, self._memory_bytes())
        self.kills()

    def begin(self) -> None:
        try:
            self._resets = self._group is not None and self._group.reset_peak()
        except OSError:
            self._resets = False

    def peak_bytes(self) -> int | None:
        """Of this call alone; None where the kernel cannot tell."""
        if self._group is None or not self._resets:
            return None
        try:
            return max(0, self._group.read().peak_bytes - self._overhead_bytes)
        except OSError:
            return None

    def kills(self) -> Kills:
        before = self._seen
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._seen = self._group.events()
        return Kills(
            memory=self._seen.oom_kills > before.oom_kills,
            processes=self._seen.pids_refused > before.pids_refused,
        )

    def _memory_bytes(self) -> int:
        try:
            return 0 if self._group is None else self._group.read().memory_bytes
        except OSError:
            return 0
