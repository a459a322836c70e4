"""Runs the rows and prints them: one table for people, the same as JSON for machines."""

import asyncio
import contextlib
import io
import json
import math
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import aiohttp

from hearth_cli.bench.row import LeftOut, Row
from hearth_cli.bench.rows import Step
from hearth_cli.bench.sources import FULL, QUICK, Scale
from hearth_cli.bench.target import Process, Target
from hearth_cli.errors import CommandError

_FAILURES = (RuntimeError, TimeoutError, OSError, aiohttp.ClientError, CommandError)


@dataclass(frozen=True, slots=True)
class Place:
    """A running platform: where it is, and its processes when it is on this machine."""

    url: str
    key: str
    processes: tuple[Process, ...] = ()


#: Both platforms, how long, and until when (loop time).
Compare = Callable[[Target, Target, Scale, float], Awaitable[Row]]


class Bench:
    """One run. Progress goes to stderr, the table to stdout."""

    def __init__(self, *, quick: bool) -> None:
        self.scale: Scale = QUICK if quick else FULL
        self.rows: list[Row] = []
        self.left_out: list[LeftOut] = []
        self.notes: list[str] = []
        self._quick = quick
        self._started = time.monotonic()

    @property
    def met(self) -> bool:
        return not any(row.ok is False for row in self.rows)

    def say(self, label: str) -> None:
        print(f"[{time.monotonic() - self._started:5.0f} s] {label} ...", file=sys.stderr, flush=True)

    def leave_out(self, rows: Iterable[LeftOut]) -> None:
        self.left_out.extend(rows)

    def measure(self, place: Place, steps: Sequence[Step]) -> None:
        """Each step on this platform. One that fails is a row that says so, and the others go on."""
        asyncio.run(self._measure(place, steps))

    async def _measure(self, place: Place, steps: Sequence[Step]) -> None:
        async with _targets(place) as (target,):
            for step in steps:
                out_of_sight = "" if place.processes else step.label if step.here else step.here_too
                if out_of_sight:
                    self.left_out.append(LeftOut(out_of_sight, "the platform's processes are not on this machine"))
                if not step.here or place.processes:
                    await self._one(step.label, step.measure(target, self.scale))

    def compare(self, first: Place, second: Place, label: str, measure: Compare) -> None:
        """A row that needs two platforms."""

        async def both() -> None:
            async with _targets(first, second) as (one, other):
                left_s = self._started + self.scale.total_s - time.monotonic()
                await self._one(label, measure(one, other, self.scale, asyncio.get_running_loop().time() + left_s))

        asyncio.run(both())

    async def _one(self, label: str, measuring: Awaitable[Row | list[Row]]) -> None:
        self.say(label)
        try:
            result = await measuring
        except _FAILURES as error:
            self.failed(label, error)
        else:
            self.rows.extend(result if isinstance(result, list) else [result])

    def failed(self, label: str, error: Exception) -> None:
        self.rows.append(Row(label, "failed", "", False, note=f"{type(error).__name__}: {error}"[:300]))

    def as_json(self) -> str:
        rows = [asdict(row) | {"verdict": row.verdict, "figures": _finite(row.figures)} for row in self.rows]
        return json.dumps(
            {
                "machine": machine(), "quick": self._quick, "seconds": round(time.monotonic() - self._started, 1),
                "notes": self.notes, "rows": rows, "left_out": [asdict(one) for one in self.left_out],
            }
        )  # fmt: skip

    def as_table(self, *, styled: bool) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        view = Table(title=f"Hearth on {_machine_line()}", title_justify="left")
        for column in ("what", "measured", "must reach", "", "hard floor", "earlier systems"):
            view.add_column(column)
        for row in self.rows:
            view.add_row(*map(Text, (row.what, row.value, row.budget, row.verdict, row.floor_verdict, row.earlier)))
            if row.note:
                view.add_row(Text(f"  {row.note}", style="dim"))
        console = Console(width=170, record=True, file=io.StringIO())
        console.print(view)
        for note in self.notes:
            console.print(Text(note))
        for one in self.left_out:
            console.print(Text(f"not in the table: {one.what} ({one.why})"))
        return console.export_text(styles=styled)


@contextlib.asynccontextmanager
async def _targets(*places: Place) -> AsyncIterator[list[Target]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Target(url=place.url, key=place.key, processes=place.processes)) for place in places
        ]


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no word for what was not measured but null."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def machine() -> dict[str, object]:
    return {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}


def _machine_line() -> str:
    facts = machine()
    return f"{facts['system']}, {facts['cpus']} CPUs, Python {facts['python']}"
