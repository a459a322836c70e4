"""`hearth trace`: where the time of a call went, as a waterfall."""

from pathlib import Path
from typing import Any, Final

from hearth_cli import terminal
from hearth_cli.client import Gateway

WIDTH: Final = 48


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
    """One line for each span, children under their parents, bars on one time axis. `start` is in seconds, or an ISO time."""
    if not spans:
        return ["no span has arrived yet"]
    starts = {id(span): _start_ms(span) for span in spans}
    first = min(starts.values())
    total_ms = max([0.001, *(starts[id(span)] - first + _length_ms(span) for span in spans)])
    by_id = {span.get("id") or span.get("span_id"): span for span in spans}
    children: dict[Any, list[dict[str, Any]]] = {}
    for span in spans:
        parent = span.get("parent")
        children.setdefault(parent if parent in by_id else None, []).append(span)
    lines: list[str] = []

    def draw(parent: Any, depth: int) -> None:
        for span in sorted(children.get(parent, []), key=lambda one: starts[id(one)]):
            offset = int((starts[id(span)] - first) / total_ms * WIDTH)
            length = max(1, round(_length_ms(span) / total_ms * WIDTH))
            bar = (" " * min(offset, WIDTH - 1) + "█" * length)[:WIDTH].ljust(WIDTH)
            name = f"{'  ' * depth}{span.get('service', '')}: {span.get('name', '')}"
            lines.append(f"{name[:52]:52} {bar} {_length_ms(span):9.2f} ms")
            own = span.get("id") or span.get("span_id")
            if own is not None:
                draw(own, depth + 1)

    draw(None, 0)
    return lines


def _start_ms(span: dict[str, Any]) -> float:
    start = span["start"]
    if isinstance(start, str):
        from datetime import datetime

        return datetime.fromisoformat(start).timestamp() * 1000
    return float(start) / 1e6 if start > 1e15 else float(start) * 1000


def _length_ms(span: dict[str, Any]) -> float:
    return float(span["duration_ms"] if "duration_ms" in span else span["duration"])
