"""`hearth keys`: who may call. The broker's side of a new tenant is made with its first key, where the broker is ours."""

import json
from pathlib import Path

from hearth_cli import terminal
from hearth_cli.client import Gateway
from hearth_cli.local import broker_users
from hearth_cli.local.broker_users import BrokerUsers
from hearth_cli.local.data_dir import DataDir, exclusive, is_locked, read_json
from hearth_cli.local.plan import Plan


def listed(told: Path | None, *, url: str, key: str, as_json: bool) -> None:
    answer = Gateway.open(told, url=url, key=key).get("/v1/keys")
    if as_json:
        terminal.out_json(answer)
        return
    found = answer["keys"] if isinstance(answer, dict) else answer
    columns = ("prefix", "name", "tenant", "admin", "revoked")
    terminal.out(terminal.table(columns, [tuple(str(one.get(column, "")) for column in columns) for one in found]))


def create(name: str, told: Path | None, *, tenant: str, admin: bool, url: str, key: str, as_json: bool) -> None:
    body = json.dumps({"name": name, "tenant": tenant, "admin": admin}).encode()
    made = (
        Gateway.open(told, url=url, key=key)
        .ask("POST", "/v1/keys", body=body, headers={"content-type": "application/json"})
        .json()
    )
    data = DataDir.at(told)
    if not url and is_locked(data.lock):
        made = {**made, "publisher": str(_publisher(data, tenant))}
    if as_json:
        terminal.out_json(made)
        return
    terminal.out(str(made.get("key") or made.get("secret")))
    terminal.note(
        f"  shown this once; tenant {tenant}"
        + (f", its publisher's credentials: {made['publisher']}" if "publisher" in made else "")
    )


def revoke(prefix: str, told: Path | None, *, url: str, key: str) -> None:
    Gateway.open(told, url=url, key=key).ask("DELETE", f"/v1/keys/{prefix}")
    terminal.note(f"{prefix} opens nothing any more")


def _publisher(data: DataDir, tenant: str) -> Path:
    """The tenant's account on the broker, in force."""
    file = BrokerUsers(data=data).issue_tenant(tenant)
    plan = Plan.load(data)
    pids = {row["name"]: row["pid"] for row in read_json(data.processes)["processes"]}
    for server in plan.servers:
        with exclusive(data.state / "reload.lock"):
            broker_users.reload(server, pids[server.name])
    return file
