"""Where one segment ends and the next begins.

Decided by the stream alone (sequences, its own time stamps, sizes), so that every store, and whoever writes to it after a
crash, cuts in the same places and writes the same bytes. The clock only says when nothing more can come.
"""

from dataclasses import dataclass, field

from hearth_persister.domain.entry import Entry


@dataclass(frozen=True, slots=True)
class Limits:
    """`window_us`: records of one such span of the stream's time share a segment. `margin_s`: how long after it a record
    may still be on its way to us."""

    bytes_max: int
    window_us: int
    margin_s: float
    records_max: int = 4096


@dataclass(slots=True, eq=False)
class Batch:
    """Everything of the stream from `first` to `last`, less what is not to be kept."""

    first: int
    last: int
    entries: list[Entry] = field(default_factory=list)
    bytes: int = 0
    seen: int = 0
    """Records, kept or not."""
    window: int = -1
    opened_at: float = 0
    """When its first kept record reached us (monotonic)."""
    cause: str = ""
    """Why it was closed."""


class Cutter:
    """Fed with the stream in order."""

    def __init__(self, limits: Limits, *, first: int) -> None:
        self._limits = limits
        self._open = Batch(first, first - 1)

    @property
    def open(self) -> Batch:
        return self._open

    def add(self, entry: Entry, now: float) -> Batch | None:
        """Take a record that is kept. Returns the batch that it closed, if it did; it is not in that one."""
        size = len(entry.meta) + len(entry.body)
        closed = self._before(entry.at_us, size)
        batch = self._open
        if not batch.entries:
            batch.window = entry.at_us // self._limits.window_us
            batch.opened_at = now
        batch.entries.append(entry)
        batch.bytes += size
        batch.seen += 1
        batch.last = entry.sequence
        return closed

    def skip(self, sequence: int, at_us: int) -> Batch | None:
        """Pass over a record that is not kept."""
        closed = self._before(at_us, 0)
        self._open.seen += 1
        self._open.last = sequence
        return closed

    def _before(self, at_us: int, size: int) -> Batch | None:
        batch = self._open
        if batch.entries and at_us // self._limits.window_us != batch.window:
            return self._close("window")
        if batch.entries and batch.bytes + size > self._limits.bytes_max:
            return self._close("bytes")
        if batch.seen >= self._limits.records_max:
            return self._close("records")
        return None

    def due_at(self) -> float | None:
        """When (monotonic) the open batch can hold nothing more: a record of its span would have reached us by then."""
        if not self._open.entries:
            return None
        return self._open.opened_at + self._limits.window_us / 1e6 + self._limits.margin_s

    def close_due(self, now: float) -> Batch | None:
        due = self.due_at()
        return self._close("age") if due is not None and now >= due else None

    def close(self) -> Batch | None:
        """What is open, when no more of it can be held in memory."""
        return self._close("memory") if self._open.entries else None

    def _close(self, cause: str) -> Batch:
        closed = self._open
        closed.cause = cause
        self._open = Batch(closed.last + 1, closed.last)
        return closed
