"""`hearth up`: the broker and all services on this machine."""

import asyncio
import signal
from pathlib import Path

from hearth_cli import terminal
from hearth_cli.commands import doctor
from hearth_cli.errors import CommandError
from hearth_cli.local import broker_binary, own_engine, platform, supervise
from hearth_cli.local.broker_config import PROFILES
from hearth_cli.local.broker_users import BrokerUsers, publisher
from hearth_cli.local.data_dir import DataDir, is_locked, read_json
from hearth_cli.local.plan import TENANT, Options, Plan


def run(told: Path | None, *, port: int, executors: int, schedulers: int, profile: str, detach: bool, install: bool) -> None:
    if profile not in PROFILES:
        raise CommandError(f"There is no profile {profile}.", fix=f"./hearth up --profile {'|'.join(PROFILES)}")
    data = DataDir.at(told)
    if is_locked(data.lock):
        running = read_json(data.processes)
        terminal.note(f"already running in {data.root}")
        terminal.out(f"address      {running.get('address', '?')}")
        terminal.note(f"another beside it: ./hearth up --data DIR --port N; this one ends with ./hearth down{data.option}")
        return
    platform.check_port(data, port)
    binary = broker_binary.find()
    data.make()
    with own_engine.used(data):
        off = doctor.make_ready(install=install)
    plan = platform.prepare(data, Options(port, executors, schedulers, profile), binary)
    if detach:
        _detached(plan, off)
    else:
        _foreground(plan, off)


def _detached(plan: Plan, off: list[str]) -> None:
    platform.start_detached(plan)
    try:
        with terminal.step("starting the broker and the services") as step:
            platform.wait_ready(plan, starting=lambda names: step(", ".join(names)))
    except BaseException:
        platform.stop(plan.data)
        platform.remove_containers(plan.data)
        own_engine.end(plan.data)
        raise
    _welcome(plan, off, detached=True)


def _foreground(plan: Plan, off: list[str]) -> None:
    """This process is the supervisor. A thread watches for readiness, as `--detach` does from outside."""
    failures: list[CommandError] = []

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)

        def watch() -> None:
            try:
                with terminal.step("starting the broker and the services") as step:
                    platform.wait_ready(plan, starting=lambda names: step(", ".join(names)), given_up=stop.is_set)
                _welcome(plan, off, detached=False)
            except CommandError as error:
                if not stop.is_set():
                    failures.append(error)
                    loop.call_soon_threadsafe(stop.set)

        watching = asyncio.create_task(asyncio.to_thread(watch), name="ready")
        try:
            await supervise.supervise(plan, stop=stop)
        finally:
            stop.set()
            await watching

    asyncio.run(main())
    platform.remove_containers(plan.data)
    if why := own_engine.end(plan.data):
        terminal.note(f"the container engine that `up` started goes on: {why}")
    terminal.note("stopped")
    if failures:
        raise failures[0]


def _welcome(plan: Plan, off: list[str], *, detached: bool) -> None:
    login = read_json(BrokerUsers(data=plan.data).credentials(publisher(TENANT)))
    where = plan.data.option
    terminal.out(
        f"""
Hearth is ready.

  address      {plan.address}
  docs         {plan.address}/docs
  broker       {plan.servers[0].url}   an acknowledgement survives {plan.profile.means}
  publisher    {login["user"]} / {login["password"]}
  admin key    {plan.data.admin_key}   (mode 0600)
  logs         {plan.data.logs}
"""
    )
    for line in off:
        terminal.out(f"  off: {line}")
    terminal.out("Next, a first function:\n")
    if not detached:
        terminal.out("  (in another terminal)")
    terminal.out(f"  ./hearth new hello && ./hearth deploy hello{where}")
    terminal.out(f'  ./hearth invoke hello{where} -d \'{{"name": "ada"}}\'')
    terminal.out(
        f'  curl -H "x-api-key: $(cat {plan.data.admin_key})" {plan.address}/v1/functions/hello/invoke -d \'{{"name": "ada"}}\''
    )
    terminal.out(f"\n{'./hearth down' + where if detached else 'Ctrl-C'} stops it.")
