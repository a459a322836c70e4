"""`hearth functions`: what is deployed."""

from pathlib import Path

from hearth_cli import terminal
from hearth_cli.client import Gateway


def run(told: Path | None, *, url: str, key: str, as_json: bool) -> None:
    answer = Gateway.open(told, url=url, key=key).get("/v1/functions")
    if as_json:
        terminal.out_json(answer)
        return
    found = answer["functions"] if isinstance(answer, dict) else answer
    columns = ("name", "version", "state", "runtime", "backend")
    rows = [tuple(str(one.get(column, "")) for column in columns) for one in found]
    terminal.out(terminal.table(columns, rows) if rows else "no function is deployed; ./hearth new hello writes one")
