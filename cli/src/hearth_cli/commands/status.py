"""`hearth status`: every process, asked itself, and the fleet as the gateway sees it."""

from pathlib import Path
from typing import Any

from hearth_cli import terminal
from hearth_cli.client import Gateway
from hearth_cli.local import platform
from hearth_cli.local.data_dir import DataDir


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
    """One line for an executor; whatever the gateway says of it, under the names it has there."""
    executors = fleet.get("executors", [])
    terminal.out(f"{len(executors)} executors")
    for one in executors:
        said = ", ".join(f"{name} {value}" for name, value in one.items() if isinstance(value, str | int | float) and value != "")
        terminal.out(f"  {said}")
