"""The broker's users: issued with a password of their own, put in force by a reload (docs/adr/0002)."""

import json
import os
import secrets
import signal
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hearth_cli.errors import BrokerUnfit
from hearth_cli.local.broker_config import Server, User, users_text
from hearth_cli.local.data_dir import DataDir, exclusive, read_json, write_private
from hearth_cli.local.ports import LOOPBACK

#: A reload takes some 5 ms; a machine under load gets this long.
RELOAD_WAIT_S: Final = 10.0
#: Makes the streams when a platform is new.
BOOTSTRAP: Final = "bootstrap"
#: Hears events for `hearth sub`, and says nothing.
LISTENER: Final = "listener"
_SYSTEM: Final = "system"
#: Stands in permission lists for the name that a process gets when it starts.
_INSTANCE: Final = "@instance@"
_TENANT: Final = "@tenant@"


@dataclass(frozen=True, slots=True)
class Rules:
    """What each kind of user may do, taken from the contracts once, at `up`.

    Kept beside the users, so that the supervisor issues credentials for years without loading the contracts.
    """

    prefix: str
    kinds: dict[str, dict[str, Any]]

    @classmethod
    def from_contracts(cls) -> "Rules":
        from hearth_contracts import permissions, registry, subjects

        def listed(may: permissions.Permissions) -> dict[str, Any]:
            return {"publish": list(may.publish), "subscribe": list(may.subscribe), "responses": may.responses}

        kinds = {service: listed(permissions.for_service(service, _INSTANCE)) for service in registry.SERVICES}
        kinds[BOOTSTRAP] = kinds[_SYSTEM] = listed(permissions.for_bootstrap())
        kinds[LISTENER] = listed(permissions.Permissions(publish=(), subscribe=(subjects.EVENTS_ALL, "_INBOX.>")))
        kinds["publisher"] = listed(permissions.for_tenant("tenant"))
        kinds["publisher"]["publish"] = [text.replace(".tenant.", f".{_TENANT}.") for text in kinds["publisher"]["publish"]]
        return cls(subjects.PREFIX, kinds)

    def user(self, name: str, password: str, kind: str, *, tenant: str = "") -> User:
        may = self.kinds[kind]
        publish, subscribe = (
            tuple(subject.replace(_INSTANCE, name).replace(_TENANT, tenant) for subject in may[side])
            for side in ("publish", "subscribe")
        )
        return User(name, password, publish=publish, subscribe=subscribe, responses=bool(may["responses"]))


class BrokerUsers:
    """Who may connect to this platform's broker. Every change is on disk before it is in force."""

    def __init__(self, *, data: DataDir) -> None:
        self._data = data
        self._file = data.state / "broker-users.json"
        self._guard = data.state / "broker-users.lock"

    def credentials(self, name: str) -> Path:
        """The file that holds a user's name and password, mode 0600."""
        return self._data.credentials / f"{name}.json"

    def start(self, *, rules: Rules, tenants: tuple[str, ...]) -> None:
        """Begin with the users that every platform has; those of processes of an earlier start are gone."""
        with exclusive(self._guard):
            before = read_json(self._file)
            for name in before.get("services", {}):
                self.credentials(name).unlink(missing_ok=True)
            known = {
                "prefix": rules.prefix,
                "kinds": rules.kinds,
                "services": {BOOTSTRAP: BOOTSTRAP, LISTENER: LISTENER},
                "tenants": sorted({*tenants, *before.get("tenants", ())}),
            }
            self._save(known)

    def issue(self, service: str, instance: str, *, replaces: str | None = None) -> Path:
        """A user for one process, with the permissions of its service. `replaces` is the one it had before."""
        with exclusive(self._guard):
            known = read_json(self._file)
            if replaces is not None and known["services"].pop(replaces, None):
                self.credentials(replaces).unlink(missing_ok=True)
            known["services"][instance] = service
            self._save(known)
        return self.credentials(instance)

    def issue_tenant(self, tenant: str) -> Path:
        """An account for a tenant with its publisher; nothing changes where it has one."""
        with exclusive(self._guard):
            known = read_json(self._file)
            known["tenants"] = sorted({*known["tenants"], tenant})
            self._save(known)
        return self.credentials(publisher(tenant))

    def _save(self, known: dict[str, Any]) -> None:
        """Write who there is, and what the broker reads."""
        rules = Rules(known["prefix"], known["kinds"])
        tenants = {
            name: (rules.user(publisher(name), self._password(publisher(name)), "publisher", tenant=name),)
            for name in known["tenants"]
        }
        services = tuple(rules.user(name, self._password(name), kind) for name, kind in known["services"].items())
        system = (rules.user(_SYSTEM, self._password(_SYSTEM), _SYSTEM),)
        write_private(self._file, json.dumps(known, indent=1))
        text = users_text(system=system, services=services, tenants=tenants, prefix=rules.prefix)
        write_private(self._data.broker_config / "users.conf", text)

    def _password(self, name: str) -> str:
        file = self.credentials(name)
        if not file.exists():
            write_private(file, json.dumps({"user": name, "password": secrets.token_hex(16)}))
        return str(read_json(file)["password"])


def publisher(tenant: str) -> str:
    """The name of a tenant's publisher."""
    return f"{tenant}-publisher"


def reload(server: Server, pid: int, *, wait_s: float = RELOAD_WAIT_S) -> None:
    """Put the users on disk in force on a running server, and wait until they are."""
    before = settings(server)["config_load_time"]
    os.kill(pid, signal.SIGHUP)
    until = time.monotonic() + wait_s
    while settings(server)["config_load_time"] == before:
        if time.monotonic() > until:
            raise BrokerUnfit(f"{server.name} refused its configuration; its log says why.")
        time.sleep(0.002)


def settings(server: Server) -> dict[str, Any]:
    """What the server says of itself."""
    with urllib.request.urlopen(f"http://{LOOPBACK}:{server.monitor_port}/varz", timeout=5) as answer:
        return dict(json.load(answer))
