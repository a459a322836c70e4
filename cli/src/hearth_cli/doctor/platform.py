"""A platform that runs: what its own processes say is wrong."""

import json
import urllib.error
import urllib.request

from hearth_cli.client import Gateway
from hearth_cli.doctor.findings import Finding
from hearth_cli.errors import CommandError
from hearth_cli.local import platform
from hearth_cli.local.data_dir import DataDir, is_locked, read_json


def local(data: DataDir) -> list[Finding]:
    """One finding for each process that is not ready, with the fix it names itself."""
    if not is_locked(data.lock):
        return []
    found = [
        Finding(row["name"], "bad", problem, fix)
        for row in read_json(data.processes).get("processes", ())
        for problem, fix in _problems(row["ready_url"])
    ]
    status = platform.status(data)
    if not found and not status.well:
        late = ", ".join(row["name"] for row in status.processes if row["state"] != "ready") or "the gateway"
        return [Finding("platform", "bad", f"not ready: {late}", "./hearth logs")]
    return found or [Finding("platform", "ok", f"{len(status.processes)} processes, {status.head['address']}")]


def remote(gateway: Gateway) -> list[Finding]:
    """What can be told of a platform from outside: whether it is ready, and who works there."""
    try:
        ready = gateway.ask("GET", "/readyz", refuse=False)
        fleet = gateway.get("/v1/system")
    except CommandError as error:
        return [Finding("platform", "bad", error.message, error.fix)]
    if ready.status != 200:
        return [Finding("platform", "bad", problem, fix) for problem, fix in _told(ready.body)]
    alive = platform.executors_alive(fleet)
    if not alive:
        return [Finding("platform", "bad", "ready, but no executor works there", "./hearth up --executors 1")]
    return [Finding("platform", "ok", f"ready, {alive} executor{'s' * (alive > 1)}")]


def _problems(url: str) -> list[tuple[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return []
    except urllib.error.HTTPError as refused:
        return _told(refused.read())
    except OSError as failure:
        return [(f"does not answer: {failure}", "./hearth status")]


def _told(body: bytes) -> list[tuple[str, str]]:
    """Problems by name, each a sentence that ends with what to do, as `/readyz` tells them."""
    try:
        problems = json.loads(body).get("problems", {})
    except ValueError:
        problems = {}
    return [(f"{name}: {text}", _command(str(text))) for name, text in problems.items()] or [("not ready", "./hearth logs")]


def _command(text: str) -> str:
    """The command a sentence names."""
    _, found, command = text.rpartition("./hearth ")
    return f"./hearth {command}" if found else ""
