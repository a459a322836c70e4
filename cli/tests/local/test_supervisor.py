"""The supervisor with real child processes: small ones that answer on a port, crash, or will not end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hearth_cli.local import ports, proc, restarts
from hearth_cli.local.data_dir import DataDir
from hearth_cli.local.log_file import LogFile, tail
from hearth_cli.local.plan import stop_order
from hearth_cli.local.supervisor import Program, Running, Supervisor

#: Answers 200 on its port and prints a line at each start. What it is told as its second argument it does.
CHILD = """
import http.server, os, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
if sys.argv[2] == "deaf": signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[2] == "crash": sys.exit(3)
if sys.argv[2].startswith("/") and not os.fork():  # a child that lives until this file exists
    while not os.path.exists(sys.argv[2]): time.sleep(0.05)
    os._exit(0)
print("started", os.environ.get("LIFE", ""), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def program(
    tmp_path: Path, name: str, how: str = "well", *, service: str = "gateway", stop_s_max: float = 5, **more: object
) -> Program:
    (tmp_path / "child.py").write_text(CHILD)
    port = ports.choose((name,), {})[name]
    return Program(
        name=name,
        service=service,
        command=(sys.executable, "-S", str(tmp_path / "child.py"), str(port), how),
        environment={},
        ready_url=f"http://127.0.0.1:{port}/readyz",
        port=port,
        stop_s_max=stop_s_max,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path / "data")
    data.make()
    return data


@pytest.fixture
async def supervisor(data: DataDir) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(data=data, changed=lambda table: None)
    yield supervisor
    await supervisor.stop([["gateway", "executor", "broker"]])


async def until(condition: Callable[[], bool], *, within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not come about"
        await asyncio.sleep(0.01)


async def test_a_killed_process_is_back_within_two_seconds(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(program(tmp_path, "one"))
    assert await supervisor.ready(["one"], within_s=20) == []
    first = supervisor.pid("one")
    killed = time.monotonic()
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.pid("one") != first and supervisor.table()[0].state == "ready")
    assert time.monotonic() - killed < 2
    assert supervisor.table()[0].restarts == 1


async def test_a_crash_is_noticed_though_its_children_live_on(tmp_path: Path, supervisor: Supervisor) -> None:
    """They hold the pipe that the crashed process printed into."""
    release = tmp_path / "release"
    supervisor.start(program(tmp_path, "one", str(release)))
    assert await supervisor.ready(["one"], within_s=20) == []
    first = supervisor.pid("one")
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.pid("one") != first)
    release.touch()


async def test_one_that_cannot_start_is_tried_again_ever_more_slowly(
    tmp_path: Path, data: DataDir, supervisor: Supervisor
) -> None:
    supervisor.start(program(tmp_path, "one", "crash"))
    await until(lambda: supervisor.table()[0].crashes >= 3)
    log = (data.logs / "one.log").read_text()
    assert "ended with 3, starts again in 0 s" in log
    assert "ended with 3, starts again in 0.25 s" in log


async def test_each_start_is_prepared(tmp_path: Path, data: DataDir, supervisor: Supervisor) -> None:
    lives: list[str] = []

    def before() -> dict[str, str]:
        lives.append(str(len(lives)))
        return {"LIFE": f"number {lives[-1]}"}

    supervisor.start(program(tmp_path, "one", before_start=before))
    assert await supervisor.ready(["one"], within_s=20) == []
    os.kill(supervisor.pid("one"), signal.SIGKILL)
    await until(lambda: "started number 1" in (data.logs / "one.log").read_text())
    assert "started number 0" in (data.logs / "one.log").read_text()


async def test_one_that_does_not_end_is_killed_in_its_time(tmp_path: Path, data: DataDir) -> None:
    supervisor = Supervisor(data=data, changed=lambda table: None)
    supervisor.start(program(tmp_path, "one", "deaf", stop_s_max=0.3))
    assert await supervisor.ready(["one"], within_s=20) == []
    pid, mark = supervisor.pid("one"), supervisor.table()[0].mark
    began = time.monotonic()
    await supervisor.stop([["gateway"]])
    assert 0.3 <= time.monotonic() - began < 5
    assert not proc.is_same(pid, mark)


async def test_they_stop_in_phases(tmp_path: Path, data: DataDir) -> None:
    """Intake first, the broker last: at each moment what is still needed still runs."""
    seen: list[tuple[str, ...]] = []

    def note(table: list[Running]) -> None:
        alive = tuple(row.program.name for row in table if row.state in {"ready", "stopping"})
        if not seen or seen[-1] != alive:
            seen.append(alive)

    supervisor = Supervisor(data=data, changed=note)
    for service in ("broker", "gateway", "executor"):
        supervisor.start(program(tmp_path, service, service=service))
    assert await supervisor.ready(["broker", "gateway", "executor"], within_s=20) == []
    seen.clear()
    await supervisor.stop(stop_order(["broker", "gateway", "executor"]))
    assert seen == [("broker", "gateway", "executor"), ("broker", "executor"), ("broker",), ()]


def test_no_child_outlives_a_killed_supervisor(tmp_path: Path, data: DataDir) -> None:
    one = program(tmp_path, "one")
    script = f"""
import asyncio
from pathlib import Path
from hearth_cli.local.data_dir import DataDir
from hearth_cli.local.supervisor import Program, Supervisor
async def main():
    supervisor = Supervisor(data=DataDir(Path({str(data.root)!r})), changed=lambda table: None)
    supervisor.start(Program(name="one", service="gateway", command={one.command!r}, environment={{}},
                             ready_url={one.ready_url!r}, port=0, stop_s_max=1))
    assert await supervisor.ready(["one"], within_s=20) == []
    print(supervisor.pid("one"), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        mark = proc.start_mark(pid)
        assert mark
        parent.kill()
    end = time.monotonic() + 5
    while proc.is_same(pid, mark):
        assert time.monotonic() < end, "the child lives on"


def test_a_pid_that_was_given_to_another_process_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        assert proc.send(other.pid, "1", signal.SIGKILL) is False
        assert proc.send(other.pid, proc.start_mark(other.pid), signal.SIGKILL) is True


@pytest.mark.parametrize(("crashes", "delay_s"), [(1, 0), (2, 0.25), (3, 0.5), (4, 1), (20, 10)])
def test_the_first_restart_costs_nothing_and_the_last_not_much(crashes: int, delay_s: float) -> None:
    assert restarts.delay_s(crashes) == delay_s


def test_a_life_long_enough_forgives_the_crashes_before_it() -> None:
    assert restarts.crashes_after(7, lived_s=restarts.WELL_AFTER_S) == 1
    assert restarts.crashes_after(7, lived_s=0.1) == 8


def test_a_log_never_passes_its_limit_and_loses_no_line(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", size_bytes_max=1_000, kept=3)
    lines = [f"line {number:04d}\n".encode() for number in range(500)]
    for line in lines:
        log.write(line)
    log.close()
    files = [tmp_path / "x.log.3", tmp_path / "x.log.2", tmp_path / "x.log.1", tmp_path / "x.log"]
    assert all(0 < file.stat().st_size <= 1_010 for file in files)
    assert not (tmp_path / "x.log.4").exists()
    kept = b"".join(file.read_bytes() for file in files)
    assert b"".join(lines).endswith(kept)
    assert tail(tmp_path / "x.log", 1) == "line 0499"
