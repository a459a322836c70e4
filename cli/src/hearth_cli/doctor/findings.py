"""One thing that was looked at, and how it stands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: ok; off: Hearth runs, with less; bad: Hearth does not run or loses something.
State = Literal["ok", "off", "bad"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """`fix` is the one command that mends it. `mend` is the same done from here, where that is possible."""

    name: str
    state: State
    says: str
    fix: str = ""
    mend: Callable[[Progress], object] | None = None

    @property
    def row(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "says": self.says, "fix": self.fix}


def worst(findings: list[Finding]) -> State:
    states = {finding.state for finding in findings}
    return "bad" if "bad" in states else "off" if "off" in states else "ok"
