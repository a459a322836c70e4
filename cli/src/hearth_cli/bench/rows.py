"""Which rows there are, and in which order: quiet ones first, and memory before anything was called."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from hearth_cli.bench import calls, memory, under_load
from hearth_cli.bench.calls import WarmGoal
from hearth_cli.bench.row import LeftOut, Row
from hearth_cli.bench.sources import Scale
from hearth_cli.bench.target import Target
from hearth_cli.bench.under_load import LoadGoal

Measure = Callable[[Target, Scale], Awaitable[Row | list[Row]]]


@dataclass(frozen=True, slots=True)
class Step:
    """One or more rows that are measured together."""

    label: str
    measure: Measure
    here: bool = False
    """It reads the processes themselves, so they must be on this machine."""
    here_too: str = ""
    """Rows of it that do, beside others that do not."""


MAIN: Final = (
    Step("idle memory", memory.idle, here=True),
    Step("reading a container's memory and CPU", calls.cgroup_read),
    Step("warm calls, process", lambda t, s: calls.warm(t, s, "process", WarmGoal(2, 8, floor_p50=3))),
    Step("warm calls, reuse", lambda t, s: calls.warm(t, s, "reuse", WarmGoal(1.2, 5))),
    Step("first calls", calls.cold),
    Step("first calls of a large bundle", calls.cold_large),
    Step(
        "200 clients, reuse",
        lambda t, s: under_load.throughput(t, s.load_s, "reuse", LoadGoal(3000, 250, 1500)),
        here_too="CPU per call, reuse",
    ),
    Step(
        "200 clients, process",
        lambda t, s: under_load.throughput(t, s.load_s, "process", LoadGoal(900, 500, 600)),
        here_too="CPU per call, process",
    ),
    Step("refusals under load", under_load.refusal),
    Step("a large output file", memory.large_output, here=True),
    Step("a large result", memory.large_result, here=True),
)


@dataclass(frozen=True, slots=True)
class Beside:
    """A platform of another kind, started for a few rows."""

    name: str
    profile: str = "dev"
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def steps(self) -> tuple[Step, ...]:
        on = f"{self.name}: "
        return (
            Step(f"{on}warm calls, process", lambda t, s: calls.warm(t, s, "process", on=on)),
            Step(f"{on}warm calls, reuse", lambda t, s: calls.warm(t, s, "reuse", on=on)),
            Step(f"{on}200 clients, reuse", lambda t, s: under_load.throughput(t, s.beside_s, "reuse", on=on)),
            Step(f"{on}200 clients, process", lambda t, s: under_load.throughput(t, s.beside_s, "process", on=on)),
        )


BESIDE: Final = (
    Beside("profile single", profile="single"),
    Beside("fallback link", environment={"HEARTH_LINK": "stdio"}),
)

#: Shown by a test, not by a figure.
CRASHES: Final = Row(
    "kill -9 of any one service or the broker under load", "by a test", earlier="not stated",
    note="0 accepted jobs lost, 0 recorded twice: ./hearth test tests/faults/test_crashes.py",
)  # fmt: skip

#: Rows of the budget table that no run of this command fills.
ELSEWHERE: Final = (
    LeftOut("wasm call, fresh sandbox each time", "functions run in containers only; no WebAssembly backend is offered yet"),
)
