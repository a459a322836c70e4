"""`hearth bench`: the budgets, on the platform that runs here or elsewhere, else on one started for the measurement."""

import asyncio
import tempfile
from pathlib import Path

from hearth_cli import terminal
from hearth_cli.bench import run as measuring
from hearth_cli.bench.target import Process
from hearth_cli.client import Gateway
from hearth_cli.commands import doctor
from hearth_cli.local import broker_binary, platform, ports
from hearth_cli.local.data_dir import DataDir, is_locked
from hearth_cli.local.plan import Options


def run(told: Path | None, *, url: str, key: str, quick: bool, as_json: bool) -> int:
    """Exit status 0 when every budget was met."""
    if url:
        gateway = Gateway.open(told, url=url, key=key)
        return 0 if asyncio.run(measuring.run(url=url, key=gateway.key, processes=(), quick=quick, as_json=as_json)) else 1
    data = DataDir.at(told)
    if is_locked(data.lock):
        return _here(data, quick=quick, as_json=as_json)
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        own = DataDir(Path(folder) / "data")
        terminal.note(f"no platform runs in {data.root}: one is started for the measurement")
        for line in doctor.make_ready(install=True):
            terminal.note(f"  off: {line}")
        plan = platform.prepare(own, Options(port=ports.choose(("http",), {})["http"]), broker_binary.find())
        platform.start_detached(plan)
        try:
            with terminal.step("starting the broker and the services") as step:
                platform.wait_ready(plan, starting=lambda names: step(", ".join(names)))
            return _here(own, quick=quick, as_json=as_json)
        finally:
            platform.stop(own)
            platform.remove_containers(own)


def _here(data: DataDir, *, quick: bool, as_json: bool) -> int:
    status = platform.status(data)
    processes = [Process(row["name"], row["pid"]) for row in status.processes]
    key = data.admin_key.read_text(encoding="utf-8").strip()
    met = asyncio.run(measuring.run(url=status.head["address"], key=key, processes=processes, quick=quick, as_json=as_json))
    return 0 if met else 1
