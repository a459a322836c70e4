"""`hearth bench`: the budgets, on the platform that runs here or elsewhere, else on one started for the measurement."""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hearth_cli import terminal
from hearth_cli.bench import rows, tracing
from hearth_cli.bench.row import LeftOut
from hearth_cli.bench.run import Bench, Place
from hearth_cli.bench.target import Process
from hearth_cli.client import Gateway
from hearth_cli.commands import doctor
from hearth_cli.errors import CommandError
from hearth_cli.local import broker_binary, own_engine, platform, ports
from hearth_cli.local.data_dir import DataDir, is_locked
from hearth_cli.local.plan import Options

_SAMPLING: Final = "HEARTH_TRACES_PER_SECOND"


def run(told: Path | None, *, url: str, key: str, quick: bool, as_json: bool) -> int:
    """Exit status 0 when no budget was missed."""
    bench = Bench(quick=quick)
    if url:
        bench.measure(Place(url, Gateway.open(told, url=url, key=key).key), rows.MAIN)
        why = "it needs a platform of its own kind, which is started only on this machine"
        bench.leave_out(LeftOut(one.name, why) for one in rows.BESIDE)
        bench.leave_out([LeftOut(tracing.WHAT, why)])
    else:
        # One that is started for this, where no init system runs, ends with it.
        with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder, _engine(DataDir(Path(folder))):
            _here(bench, DataDir.at(told))
    bench.rows.append(rows.CRASHES)
    bench.leave_out(rows.ELSEWHERE)
    terminal.out(bench.as_json() if as_json else bench.as_table(styled=sys.stdout.isatty()))
    return 0 if bench.met else 1


def _here(bench: Bench, data: DataDir) -> None:
    if is_locked(data.lock):
        bench.notes.append(f"measured on the platform in {data.root}, as it was: its memory is not that of a fresh one")
        bench.measure(_place(data), rows.MAIN)
    else:
        terminal.note(f"no platform runs in {data.root}: one is started for the measurement")
        with _started("dev", {}) as place:
            bench.measure(place, rows.MAIN)
    for beside in rows.BESIDE:
        try:
            with _started(beside.profile, beside.environment) as place:
                bench.measure(place, beside.steps())
        except CommandError as error:
            bench.failed(beside.name, error)
    try:
        with _started("dev", {_SAMPLING: _shipped_sampling()}) as sampling, _started("dev", {_SAMPLING: "0"}) as silent:
            bench.compare(sampling, silent, "tracing against none", tracing.tracing)
    except CommandError as error:
        bench.failed(tracing.WHAT, error)


@contextlib.contextmanager
def _engine(user: DataDir) -> Iterator[None]:
    """The engine is there meanwhile."""
    try:
        with own_engine.used(user):
            for line in doctor.make_ready(install=True):
                terminal.note(f"  off: {line}")
        yield
    finally:
        with _uninterrupted():
            own_engine.end(user)


def _shipped_sampling() -> str:
    """Whatever the environment of this command says."""
    from hearth_kit.settings import ServiceSettings

    return str(ServiceSettings.model_fields["traces_per_second"].default)


def _place(data: DataDir) -> Place:
    status = platform.status(data)
    key = data.admin_key.read_text(encoding="utf-8").strip()
    return Place(status.head["address"], key, tuple(Process(row["name"], row["pid"]) for row in status.processes))


@contextlib.contextmanager
def _started(profile: str, environment: dict[str, str]) -> Iterator[Place]:
    """A platform with a data directory of its own. Nothing of it is left afterwards, however this ends."""
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        data = DataDir(Path(folder) / "data")
        options = Options(port=ports.choose(("http",), {})["http"], profile=profile)
        plan = platform.prepare(data, options, broker_binary.find())
        try:
            supervisor = platform.start_detached(plan, environment)
            try:
                with terminal.step("starting the broker and the services") as step:
                    platform.wait_ready(plan, starting=lambda names: step(", ".join(names)))
                yield _place(data)
            finally:
                with _uninterrupted(), terminal.step("stopping"):
                    supervisor.terminate()  # it may not have written down yet that it runs
                    platform.stop(data)
                    supervisor.wait()
        finally:
            with _uninterrupted():
                platform.remove_containers(data)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not stop the stopping."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
