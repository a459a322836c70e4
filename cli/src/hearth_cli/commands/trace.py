"""`hearth trace`: where the time of a call went, as a waterfall."""

from pathlib import Path
from typing import Any, Final

from hearth_cli import terminal
from hearth_cli.client import Gateway

WIDTH: Final = 48
NAME_WIDTH: Final = 52


def run(job: str, told: Path | None, *, url: str, key: str, as_json: bool) -> None:
    trace = Gateway.open(told, url=url, key=key).get(f"/v1/jobs/{job}/trace")
    if as_json:
        terminal.out_json(trace)
        return
    terminal.out(f"trace {trace['trace_id']}")
    if trace.get("derived"):
        terminal.out("(not sampled: told from the call's record)")
    for line in waterfall(trace["spans"]):
        terminal.out(line)


def waterfall(spans: list[dict[str, Any]]) -> list[str]:
    """One line for each span, children under their parents, bars on one time axis. Times are in seconds.

    The axis is the first span's time: what the caller waited for. What comes later (storing the record) ends in `▸`.
    """
    if not spans:
        return ["no span has arrived yet"]
    earliest = min(spans, key=lambda span: (span["start"], -span["duration"]))
    first, total_s = earliest["start"], max(earliest["duration"], 1e-6)
    known = {span["span_id"] for span in spans}
    children: dict[str | None, list[dict[str, Any]]] = {}
    for span in spans:
        children.setdefault(span.get("parent") if span.get("parent") in known else None, []).append(span)
    lines: list[str] = []

    def draw(parent: str | None, depth: int) -> None:
        for span in sorted(children.get(parent, []), key=lambda one: one["start"]):
            offset = min(int((span["start"] - first) / total_s * WIDTH), WIDTH - 1)
            length = max(1, round(span["duration"] / total_s * WIDTH))
            bar = (" " * offset + "█" * length).ljust(WIDTH)
            if len(bar) > WIDTH:
                bar = bar[: WIDTH - 1] + "▸"
            name = f"{'  ' * depth}{span['service']}: {span['name']}"
            failed = "  failed" if span.get("error") else ""
            lines.append(f"{name[:NAME_WIDTH]:{NAME_WIDTH}} {bar} {span['duration'] * 1000:9.2f} ms{failed}")
            draw(span["span_id"], depth + 1)

    draw(None, 0)
    return lines
