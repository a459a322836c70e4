"""The order of what is told about a job: states by (attempt, phase), logs by their place in the stream, then the final."""

from dataclasses import dataclass, replace

FINAL_ID = "final"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader of a job's events has come. Its text is the id of each server-sent event, so that a client that
    reconnects, to any gateway, says exactly where it stopped."""

    attempt: int = 0
    phase: int = -1
    log: int = 0
    """Sequence of the last log chunk in its stream."""

    def __str__(self) -> str:
        return f"{self.attempt}.{self.phase}.{self.log}"

    def after_state(self, attempt: int, phase: int) -> "Cursor | None":
        """The cursor once this state was told; None when it is old news."""
        if (attempt, phase) <= (self.attempt, self.phase):
            return None
        return replace(self, attempt=attempt, phase=phase)

    def after_log(self, sequence: int) -> "Cursor":
        return replace(self, log=max(self.log, sequence))


def parse(text: str) -> Cursor | None:
    """The cursor in a `Last-Event-ID`; None when the reader has had the final already. Nonsense reads as the beginning."""
    if text == FINAL_ID:
        return None
    parts = text.split(".")
    try:
        attempt, phase, log = (int(part) for part in parts)
    except ValueError:
        return Cursor()
    return Cursor(max(0, attempt), max(-1, phase), max(0, log))
