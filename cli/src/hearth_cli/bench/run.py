"""Runs the rows and prints them: one table for people, the same as JSON for machines."""

import io
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from hearth_cli.bench import rows
from hearth_cli.bench.rows import Row, Scale
from hearth_cli.bench.target import Process, Target


async def run(*, url: str, key: str, processes: Sequence[Process], quick: bool, as_json: bool) -> bool:
    """Measure everything; whether every budget was met. Progress goes to stderr, the table to stdout."""
    scale = rows.QUICK if quick else rows.FULL
    started = time.monotonic()
    measured: list[Row] = []
    async with Target(url=url, key=key, processes=processes) as target:
        for label, measure in rows.plan(scale):
            print(f"[{time.monotonic() - started:5.0f} s] {label} ...", file=sys.stderr, flush=True)
            measured.extend(await _guarded(label, measure, target, scale))
    if as_json:
        print(json.dumps({"machine": machine(), "seconds": round(time.monotonic() - started, 1),
                          "rows": [asdict(row) for row in measured]}))  # fmt: skip
    else:
        print(table(measured))
    return all(row.ok for row in measured)


async def _guarded(label: str, measure: rows.Measure, target: Target, scale: Scale) -> list[Row]:
    try:
        result = await measure(target, scale)
    except (RuntimeError, TimeoutError, OSError) as error:
        return [Row(label, "failed", "", False, note=f"{type(error).__name__}: {error}"[:300])]
    return result if isinstance(result, list) else [result]


def machine() -> dict[str, object]:
    import os

    return {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}


def table(measured: Sequence[Row]) -> str:
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"Hearth on {os_line()}", title_justify="left")
    for column in ("what", "measured", "must reach", "", "earlier systems"):
        view.add_column(column)
    for row in measured:
        view.add_row(row.what, row.value, row.budget, "met" if row.ok else "MISSED", row.earlier)
        if row.note:
            view.add_row(f"  [dim]{row.note}[/dim]", "", "", "", "")
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text(styles=sys.stdout.isatty())


def os_line() -> str:
    facts = machine()
    return f"{facts['system']}, {facts['cpus']} CPUs, Python {facts['python']}"
