"""Run one platform from its plan: the broker first, then the services; `python -m hearth_cli.local.supervise DIR`.

This process lives as long as the platform, so it stays small: it imports neither the contracts nor the kit.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from hearth_cli.errors import BrokerUnfit, CommandError, StartFailed
from hearth_cli.local import broker_users, cores, proc
from hearth_cli.local.broker_config import Server, server_text
from hearth_cli.local.broker_users import BrokerUsers
from hearth_cli.local.data_dir import DataDir, exclusive, write_private
from hearth_cli.local.log_file import tail
from hearth_cli.local.plan import DRAIN_S_MAX, Instance, Plan, module, service_defaults, service_environment, stop_order
from hearth_cli.local.supervisor import Program, Running, Supervisor
from hearth_kit import batches

BROKER_READY_S_MAX: Final = 30.0
#: The broker keeps what it read in the last ten seconds, and gives it up only when its collector has to: without this, a large
#: body stays in its memory as far as the disk is fast. Above all that a million finished calls need (500 MiB).
BROKER_MEMORY: Final = "512MiB"
_STOP_S_MAX: Final = DRAIN_S_MAX + 5.0


async def supervise(plan: Plan, *, stop: asyncio.Event) -> None:
    """Run the platform until `stop`. The lock says that it runs, for as long as it does."""
    with plan.data.lock.open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartFailed(f"A platform runs already in {plan.data.root}.", fix=f"./hearth down{plan.data.option}") from None
        table = _Table(plan)
        supervisor = Supervisor(data=plan.data, changed=table.save)
        try:
            await _unless(stop, _start(plan, supervisor))
            if os.environ.get("HEARTH_CORES") != "all":
                supervisor.beside(cores.keep_together(supervisor.pids, platform=plan.platform), name="cores")
            await _unless(stop, _raise(supervisor))
        finally:
            await supervisor.stop(stop_order(running.program.service for running in supervisor.table()))
            table.remove()


async def _start(plan: Plan, supervisor: Supervisor) -> None:
    users = BrokerUsers(data=plan.data)
    for server in plan.servers:
        supervisor.start(broker_program(plan, server))
    late = await supervisor.ready([server.name for server in plan.servers], within_s=BROKER_READY_S_MAX)
    if late:
        said = "\n".join(tail(plan.data.logs / f"{name}.log", 10) for name in late)
        raise StartFailed("The broker did not start.", detail=said)
    check_settings(plan)
    if plan.streams_due:
        await _bootstrap(plan)
    credentials = {one.name: users.issue(one.service, one.name) for one in plan.instances if one.service != "executor"}
    await asyncio.to_thread(put_in_force, plan, supervisor)
    for one in plan.instances:
        if one.service == "executor":
            supervisor.start(executor_program(plan, one, users, supervisor))
        else:
            supervisor.start(service_program(plan, one, credentials[one.name]))


def broker_program(plan: Plan, server: Server) -> Program:
    """A broker, its configuration written."""
    file = plan.data.broker_config / f"{server.name}.conf"
    store = plan.data.streams / server.name
    text = server_text(
        server, platform=plan.platform, peers=plan.servers, profile=plan.profile, capacity=plan.capacity, store=store
    )
    write_private(file, text)
    return Program(
        name=server.name,
        service="broker",
        command=(str(plan.nats_server), "--config", str(file)),
        environment={"HEARTH_PLATFORM": plan.platform},
        defaults={"GOMEMLIMIT": BROKER_MEMORY},
        ready_url=server.health_url,
        port=server.port,
        stop_s_max=10.0,
    )


def service_program(plan: Plan, one: Instance, credentials: Path) -> Program:
    return Program(
        name=one.name,
        service=one.service,
        command=(sys.executable, "-m", module(one.service)),
        environment=service_environment(plan, one, credentials=credentials),
        defaults=service_defaults(plan),
        ready_url=one.ready_url,
        port=one.port,
        stop_s_max=_STOP_S_MAX,
    )


def executor_program(plan: Plan, one: Instance, users: BrokerUsers, supervisor: Supervisor) -> Program:
    """An executor: each of its lives has an id and credentials of its own, and those of the one before are void."""
    lives: list[str] = []

    def before_start() -> Mapping[str, str]:
        boot = secrets.token_hex(4)
        life = f"{one.name}-{boot}"
        file = users.issue("executor", life, replaces=lives.pop() if lives else None)
        lives.append(life)
        put_in_force(plan, supervisor)
        return {"HEARTH_BOOT": boot, "HEARTH_NATS_CREDENTIALS": str(file)}

    program = service_program(plan, one, users.credentials(one.name))
    return Program(
        name=program.name,
        service=program.service,
        command=program.command,
        environment=program.environment,
        defaults=program.defaults,
        ready_url=program.ready_url,
        port=program.port,
        stop_s_max=program.stop_s_max,
        before_start=before_start,
    )


def put_in_force(plan: Plan, supervisor: Supervisor, *, wait_s: float = BROKER_READY_S_MAX) -> None:
    """Make every broker know the users on disk. One that does not run now reads them when it starts."""
    until = time.monotonic() + wait_s
    for server in plan.servers:
        while True:
            try:
                with exclusive(plan.data.state / "reload.lock"):
                    broker_users.reload(server, supervisor.pid(server.name))
                break
            except OSError:
                if time.monotonic() > until:
                    break
                time.sleep(0.1)


def check_settings(plan: Plan) -> None:
    """Hold what the brokers say of themselves against what an acknowledgement is promised to mean."""
    wanted_ns = {"always": 0, "2m": 120_000_000_000}[plan.profile.sync_interval]
    for server in plan.servers:
        says = broker_users.settings(server)
        journal = says["jetstream"]["config"]
        always = bool(journal.get("sync_always"))
        wrong = {
            "max_payload": says["max_payload"] != 1024 * 1024,
            "feature_flags.js_ack_fc_v2": says.get("feature_flags", {}).get("js_ack_fc_v2", True) is not False,
            "jetstream.strict": journal.get("strict") is not True,
            "jetstream.sync_interval": always != (wanted_ns == 0) or (not always and journal["sync_interval"] != wanted_ns),
        }
        if any(wrong.values()):
            named = ", ".join(name for name, bad in wrong.items() if bad)
            raise BrokerUnfit(f"{server.name} does not run with the settings it was given: {named}.")


async def _bootstrap(plan: Plan) -> None:
    command = (sys.executable, "-m", "hearth_cli.local.bootstrap", str(plan.data.root))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    said, _ = await process.communicate()
    if process.returncode:
        raise StartFailed("The streams could not be made.", detail=said.decode(errors="replace")[-2000:])


class _Table:
    """What runs now, on disk, for `status` and `down`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._head = {
            "platform": plan.platform,
            "address": plan.address,
            "broker": plan.broker_urls,
            "profile": plan.profile.name,
            "supervisor": {"pid": os.getpid(), "mark": proc.start_mark(os.getpid())},
            "started_at": time.time(),
        }

    def save(self, table: list[Running]) -> None:
        rows = [
            {
                "name": row.program.name,
                "service": row.program.service,
                "pid": row.pid,
                "mark": row.mark,
                "port": row.program.port,
                "state": row.state,
                "restarts": row.restarts,
                "crashes": row.crashes,
                "ready_url": row.program.ready_url,
            }
            for row in table
        ]
        write_private(self._plan.data.processes, json.dumps({**self._head, "processes": rows}, indent=1))

    def remove(self) -> None:
        self._plan.data.processes.unlink(missing_ok=True)


async def _raise(supervisor: Supervisor) -> None:
    raise await supervisor.failed()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or leave it where it is when `stop` comes first."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, waiting):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def run(plan: Plan) -> None:
    """Run the platform in this process until SIGTERM or SIGINT."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await supervise(plan, stop=stop)

    batches.work_in_batches()
    asyncio.run(main())


if __name__ == "__main__":
    try:
        run(Plan.load(DataDir(Path(sys.argv[1]))))
    except CommandError as error:
        print(f"{error.message}\n{error.detail}".strip(), file=sys.stderr)
        sys.exit(1)
