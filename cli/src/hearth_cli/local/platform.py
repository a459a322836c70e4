"""A platform on this machine: made ready, started, looked at, stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hearth_cli.errors import NotRunning, PortInUse, StartFailed
from hearth_cli.local import engine, images, ports, proc
from hearth_cli.local import plan as plans
from hearth_cli.local.broker_binary import BrokerBinary
from hearth_cli.local.broker_config import PROFILES, Capacity
from hearth_cli.local.broker_users import BrokerUsers, Rules
from hearth_cli.local.data_dir import DataDir, is_locked, read_json, workspace_root, write_private
from hearth_cli.local.log_file import tail
from hearth_cli.local.plan import Options, Plan

#: From the start of the processes until the gateway knows of an executor.
READY_S_MAX: Final = 90.0
#: All phases of a stop, each with what it may take.
STOP_S_MAX: Final = 75.0
#: A process that ended so often before it was ever ready will not be.
HOPELESS_CRASHES: Final = 4
_POLL_S: Final = 0.05


def prepare(data: DataDir, options: Options, broker: BrokerBinary) -> Plan:
    """Make the data directory, choose the ports, write configuration and users: everything but the processes."""
    from hearth_cli.local import bootstrap
    from hearth_contracts import streams

    check_port(data, options.port)
    data.make()
    chosen = ports.choose(plans.port_names(options), read_json(data.ports), preferred={"broker-1.client": plans.BROKER_PORT})
    write_private(data.ports, json.dumps({**read_json(data.ports), **chosen}, indent=1))
    profile = PROFILES[options.profile]
    plan = Plan(
        platform=data.platform(),
        data=data,
        nats_server=broker.path,
        options=options,
        servers=plans.servers(profile, chosen),
        instances=plans.instances(options, chosen),
        # Streams reserve their limits: a tenth more leaves room for what a test or an operator adds.
        capacity=Capacity(streams.MEMORY_BYTES_MAX * 11 // 10, streams.FILE_BYTES_MAX * 11 // 10),
        images=_images(),
        streams_due=bootstrap.due(data, profile.servers),
    )
    BrokerUsers(data=data).start(rules=Rules.from_contracts(), tenants=(plans.TENANT,))
    plan.save()
    return plan


def check_port(data: DataDir, port: int) -> None:
    """Raise `PortInUse` where a gateway could not listen."""
    if not ports.is_free(port):
        raise PortInUse(f"Port {port} is used by another program.", fix=f"./hearth up --port {_free_near(port)}{data.option}")


def _images() -> str:
    """Those that are built; of a runtime that is not named the executor takes the newest there is."""
    root = workspace_root()
    if root is None or not engine.inspect_engine().ready:
        return ""
    built = [runtime for runtime in images.RUNTIMES if images.present(root, runtime)]
    return ",".join(f"{runtime}={images.reference(root, runtime)}" for runtime in built)


def start_detached(plan: Plan, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start the supervisor as a process of its own that outlives this one. `environment` comes on top of ours."""
    with (plan.data.logs / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hearth_cli.local.supervise", str(plan.data.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **(environment or {})},
        )


def wait_ready(
    plan: Plan,
    *,
    starting: Callable[[list[str]], None],
    given_up: Callable[[], bool] = lambda: False,
    within_s: float = READY_S_MAX,
) -> None:
    """Return when every process is ready and the gateway counts every executor; `starting` hears who is not yet."""
    began, late = time.monotonic(), list[str]()
    while time.monotonic() - began < within_s:
        table = read_json(plan.data.processes)
        rows = table.get("processes", [])
        hopeless = [row["name"] for row in rows if row["crashes"] >= HOPELESS_CRASHES]
        if hopeless:
            raise StartFailed(
                f"{hopeless[0]} does not start.",
                detail=tail(plan.data.logs / f"{hopeless[0]}.log", 15),
                fix=f"mend what its log says: ./hearth logs {hopeless[0]}{plan.data.option}",
            )
        if not is_locked(plan.data.lock) and time.monotonic() - began > 5:
            raise StartFailed(
                "The supervisor ended.",
                detail=tail(plan.data.logs / "supervisor.log", 15),
                fix=f"mend what its log says: ./hearth logs supervisor{plan.data.option}",
            )
        late = [row["name"] for row in rows if row["state"] != "ready"]
        if len(rows) == len(plan.servers) + len(plan.instances) and not late:
            late = ["the fleet"] if executors_alive(system(plan.address, plan.data)) < plan.options.executors else []
            if not late:
                return
        if given_up():
            raise StartFailed("Stopped while starting.")
        starting(late)
        time.sleep(_POLL_S)
    raise StartFailed(
        f"Not ready after {within_s:g} s: {', '.join(late)}.",
        detail=_tails(plan, late),
        fix=f"mend what the logs say: ./hearth logs {late[0]}{plan.data.option}",
    )


def _tails(plan: Plan, names: list[str]) -> str:
    return "\n".join(tail(plan.data.logs / f"{name}.log", 5) for name in names)


def executors_alive(fleet: dict[str, Any] | None) -> int:
    """How many executors the gateway counts as able to work."""
    return sum(one.get("state") == "ready" for one in (fleet or {}).get("executors", ()))


def system(address: str, data: DataDir) -> dict[str, Any] | None:
    """`GET /v1/system` with the admin key, or None where the gateway does not answer."""
    try:
        asked = urllib.request.Request(f"{address}/v1/system", headers={"x-api-key": data.admin_key.read_text().strip()})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Status:
    """A running platform: its processes as they are now, and its fleet as the gateway sees it."""

    head: dict[str, Any]
    processes: list[dict[str, Any]]
    fleet: dict[str, Any] | None

    @property
    def well(self) -> bool:
        return self.fleet is not None and all(row["state"] == "ready" for row in self.processes)


def status(data: DataDir) -> Status:
    """What runs, asked of the processes themselves."""
    table = read_json(data.processes)
    if not table or not is_locked(data.lock):
        raise NotRunning(f"No platform runs in {data.root}.", fix=f"./hearth up{data.option}")
    rows = table.pop("processes")
    with ThreadPoolExecutor(max_workers=8) as pool:
        fleet = pool.submit(system, table["address"], data)
        states = list(pool.map(_state_now, rows))
    own = table["supervisor"]
    processes = [{"name": "supervisor", "pid": own["pid"], "port": None, "state": "ready", "restarts": 0}]
    for row, state in zip(rows, states, strict=True):
        processes.append({key: row[key] for key in ("name", "pid", "port", "restarts")} | {"state": state})
    return Status(table, processes, fleet.result())


def _state_now(row: dict[str, Any]) -> str:
    if not proc.is_same(row["pid"], row["mark"]):
        return "down" if row["state"] == "ready" else str(row["state"])
    try:
        with urllib.request.urlopen(row["ready_url"], timeout=2):
            return "ready"
    except urllib.error.HTTPError:
        return "not ready"
    except OSError:
        return "starting" if row["state"] == "starting" else "silent"


def stop(data: DataDir) -> int:
    """Stop the platform's processes; answers how many had to be killed. Nothing of it runs when this returns."""
    table = read_json(data.processes)
    own = table.get("supervisor", {"pid": 0, "mark": ""})
    proc.send(own["pid"], own["mark"], signal.SIGTERM)
    until = time.monotonic() + STOP_S_MAX
    while is_locked(data.lock) and time.monotonic() < until:
        time.sleep(_POLL_S)
    if is_locked(data.lock):
        proc.send(own["pid"], own["mark"], signal.SIGKILL)
    killed = 0
    while left := list(proc.of_platform(data.platform())):
        for pid in left:
            killed += 1
            _kill(pid)
        time.sleep(_POLL_S)
    data.processes.unlink(missing_ok=True)
    return killed


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def remove_containers(data: DataDir) -> int:
    """Remove what an executor that was killed left in the engine: only containers that carry this platform's label."""
    return engine.remove_containers(data.platform()) if engine.inspect_engine().ready else 0


def is_data_dir(path: Path) -> bool:
    """Whether a folder is one of ours, and so may be purged."""
    return DataDir(path).exists


def _free_near(port: int) -> int:
    return next((candidate for candidate in range(port + 1, port + 100) if ports.is_free(candidate)), 0)
