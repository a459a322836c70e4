"""`hearth status`: every process, asked itself, and the fleet as the gateway sees it."""

from pathlib import Path
from typing import Any, Final

from hearth_cli import terminal
from hearth_cli.client import Gateway
from hearth_cli.local import platform
from hearth_cli.local.data_dir import DataDir

#: Characters of what an executor says of its engine.
NOTE_MAX: Final = 160


def run(told: Path | None, *, url: str, key: str, as_json: bool) -> None:
    if url:
        fleet = Gateway.open(told, url=url, key=key).get("/v1/system")
        terminal.out_json(fleet) if as_json else _show_fleet(fleet)
        return
    status = platform.status(DataDir.at(told))
    if as_json:
        fleet = status.fleet or {"executors": []}
        # What the gateway hears of the services is told beside what their supervisor knows of them.
        presence = {"presence": fleet["processes"]} if "processes" in fleet else {}
        terminal.out_json({**fleet, **status.head, "processes": status.processes, **presence})
        return
    terminal.out(f"{status.head['address']}   platform {status.head['platform']}   profile {status.head['profile']}\n")
    rows = [
        (row["name"], str(row["pid"]), str(row["port"] or "-"), row["state"], str(row["restarts"])) for row in status.processes
    ]
    terminal.out(terminal.table(("process", "pid", "port", "state", "restarts"), rows))
    terminal.out()
    if status.fleet is None:
        terminal.out("The gateway does not answer; its log: ./hearth logs gateway-1")
    else:
        _show_fleet(status.fleet)


def _show_fleet(fleet: dict[str, Any]) -> None:
    """The executors with their room and both tiers of warm sandboxes; queues and streams only where there is something."""
    executors: list[dict[str, Any]] = fleet.get("executors", [])
    rows = [
        (
            str(one.get("executor", "")),
            str(one.get("state", "")),
            f"{one.get('free', 0)}/{one.get('slots', 0)}",
            str(one.get("running", 0)),
            _counts(one.get("warm")),
            _counts(one.get("generic")),
        )
        for one in executors
    ]
    if rows:
        terminal.out(terminal.table(("executor", "state", "free", "running", "warm", "generic"), rows))
    else:
        terminal.out("no executor has reported")
    for one in (one for one in executors if one.get("state") != "gone"):
        for name, said in (one.get("backend_notes") or {}).items():
            terminal.out(f"  {one.get('executor')}: {name}: {_short(str(said))}")
    for function, depth in (fleet.get("queues") or {}).items():
        terminal.out(f"  waiting for {function}: {depth}")
    for stream in fleet.get("streams") or []:
        if stream.get("state") != "ok":
            terminal.out(f"  stream {stream.get('name')}: {stream.get('state')}; ./hearth doctor")


def _short(text: str) -> str:
    """As much as stands on a line or two; `--json` has the whole."""
    return text if len(text) <= NOTE_MAX else f"{text[:NOTE_MAX].rsplit(' ', 1)[0]} … (all of it: ./hearth status --json)"


def _counts(by_name: dict[str, int] | None) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted((by_name or {}).items())) or "-"
