"""Whole platforms as `up` starts them: what they leave behind, and that two of them do not touch each other."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hearth_cli.local import engine, ports, proc
from hearth_cli.local.data_dir import DataDir, read_json
from hearth_cli.local.engine_api import EngineApi

pytestmark = [pytest.mark.platform, pytest.mark.broker]


def hearth(*words: str, env: dict[str, str] | None = None, timeout_s: float = 200) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hearth_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **(env or {})})


def free_port() -> int:
    return ports.choose(("http",), {})["http"]


@contextlib.contextmanager
def up(data: DataDir, *options: str) -> Iterator[int]:
    port = free_port()
    done = hearth("up", "--detach", "--no-install", "--data", str(data.root), "--port", str(port), *options)
    try:
        assert done.returncode == 0, done.stdout + done.stderr + logs(data)
        yield port
    finally:
        hearth("down", "--data", str(data.root))


def logs(data: DataDir) -> str:
    return "\n".join(f"── {file.name}\n{file.read_text()[-1500:]}" for file in sorted(data.logs.glob("*.log")))


def status(data: DataDir) -> dict[str, Any]:
    done = hearth("status", "--json", "--data", str(data.root))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def containers(platform: str) -> list[dict[str, Any]]:
    if not engine.inspect_engine().ready:
        return []
    return EngineApi().containers([f"hearth.platform={platform}"])


def until(condition: Callable[[], object], *, within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.05)


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def test_up_tells_what_a_person_needs_and_down_leaves_nothing(data: DataDir) -> None:
    port = free_port()
    done = hearth("up", "--detach", "--no-install", "--data", str(data.root), "--port", str(port))
    try:
        assert done.returncode == 0, done.stdout + done.stderr + logs(data)
        for told in (
            f"http://127.0.0.1:{port}",
            "/docs",
            "nats://127.0.0.1:",
            "default-publisher",
            str(data.admin_key),
            "hearth deploy",
        ):
            assert told in done.stdout
        said = status(data)
        rows = {row["name"]: row for row in said["processes"]}
        assert {"broker-1", "gateway-1", "scheduler-1", "executor-1", "ai-proxy-1", "persister-1"} <= set(rows)
        assert all(row["state"] == "ready" and row["pid"] for row in rows.values())
        assert rows["gateway-1"]["port"] == port
        assert len(said["executors"]) == 1
        platform = data.platform()
        pids = [(row["pid"], proc.start_mark(row["pid"])) for row in rows.values()]
    finally:
        stopped = hearth("down", "--purge", "--data", str(data.root))
    assert stopped.returncode == 0
    assert not any(proc.is_same(pid, mark) for pid, mark in pids)
    assert list(proc.of_platform(platform)) == []
    assert containers(platform) == []
    assert not data.root.exists()


def test_a_port_in_use_is_named_with_the_option(data: DataDir) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = hearth("up", "--detach", "--no-install", "--data", str(data.root), "--port", str(port))
    assert done.returncode == 1
    assert f"Port {port} is used" in done.stderr
    assert "--port" in done.stderr


def test_two_platforms_side_by_side_do_not_touch_each_other(tmp_path: Path) -> None:
    one, two = DataDir(tmp_path / "one"), DataDir(tmp_path / "two")
    with up(one) as port, up(two):
        assert one.platform() != two.platform()
        used = [set(read_json(data.ports).values()) for data in (one, two)]
        assert used[0].isdisjoint(used[1])
        key = two.admin_key.read_text().strip()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/system", headers={"x-api-key": key})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asked, timeout=10)
        before = {row["name"]: row["pid"] for row in status(one)["processes"]}
        before_containers = {container["Id"] for container in containers(one.platform())}
        assert hearth("down", "--data", str(two.root)).returncode == 0
        said = status(one)
        assert {row["name"]: row["pid"] for row in said["processes"]} == before
        assert all(row["state"] == "ready" for row in said["processes"])
        assert before_containers <= {container["Id"] for container in containers(one.platform())}
        assert containers(two.platform()) == []


def test_a_killed_service_is_back_and_a_killed_executor_is_another(data: DataDir) -> None:
    with up(data):
        before = {row["name"]: row["pid"] for row in status(data)["processes"]}
        ids = {one["executor"] for one in status(data)["executors"]}
        for name in ("scheduler-1", "executor-1", "persister-1", "ai-proxy-1", "gateway-1", "broker-1"):
            os.kill(before[name], signal.SIGKILL)
            until(lambda: {row["name"]: row["state"] for row in status(data)["processes"]}[name] == "ready")  # noqa: B023
            assert {row["name"]: row["pid"] for row in status(data)["processes"]}[name] != before[name]
        until(lambda: len({one["executor"] for one in status(data)["executors"] if one["state"] == "ready"}) == 1)
        assert ids.isdisjoint(one["executor"] for one in status(data)["executors"] if one["state"] == "ready")


def test_a_killed_supervisor_takes_all_with_it_and_up_starts_again(data: DataDir) -> None:
    with up(data):
        rows = status(data)["processes"]
        marks = [(row["pid"], proc.start_mark(row["pid"])) for row in rows]
        os.kill(next(row["pid"] for row in rows if row["name"] == "supervisor"), signal.SIGKILL)
        until(lambda: not any(proc.is_same(pid, mark) for pid, mark in marks))
        assert hearth("status", "--data", str(data.root)).returncode == 1
        with up(data):
            assert all(row["state"] == "ready" for row in status(data)["processes"])


def test_a_second_up_says_that_it_runs(data: DataDir) -> None:
    with up(data) as port:
        again = hearth("up", "--detach", "--no-install", "--data", str(data.root))
        assert again.returncode == 0
        assert f"http://127.0.0.1:{port}" in again.stdout
        assert "already" in again.stderr


def test_in_the_foreground_a_signal_stops_all(data: DataDir) -> None:
    port = free_port()
    command = [sys.executable, "-m", "hearth_cli", "up", "--no-install", "--data", str(data.root), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        said = ""
        while "Ctrl-C stops it" not in said:
            line = running.stdout.readline()
            assert line, said + logs(data)
            said += line
        rows = status(data)["processes"]
        assert next(row["pid"] for row in rows if row["name"] == "supervisor") == running.pid
        running.send_signal(signal.SIGINT)
        running.stdout.read()
        assert running.wait(60) == 0
    assert list(proc.of_platform(data.platform())) == []
    assert containers(data.platform()) == []


def test_a_start_that_is_told_to_end_leaves_nothing(data: DataDir) -> None:
    """As with Ctrl-C: whatever was started for this command alone is stopped before it ends."""
    command = [sys.executable, "-m", "hearth_cli", "up", "--detach", "--no-install", "--data", str(data.root)]
    with subprocess.Popen([*command, "--port", str(free_port())], stderr=subprocess.PIPE, text=True) as starting:
        until(data.processes.exists)
        starting.send_signal(signal.SIGTERM)
        starting.communicate(timeout=60)
        assert starting.returncode == 128 + signal.SIGTERM
    assert list(proc.of_platform(data.platform())) == []
    assert containers(data.platform()) == []


@pytest.mark.docker
def test_a_function_is_written_deployed_called_and_looked_up(data: DataDir, tmp_path: Path) -> None:
    with up(data):
        where = ("--data", str(data.root))
        assert hearth("new", "greet", "--in", str(tmp_path)).returncode == 0
        deployed = hearth("deploy", str(tmp_path / "greet"), *where)
        assert deployed.returncode == 0, deployed.stderr
        assert "greet version 1 is READY" in deployed.stdout
        called = hearth("invoke", "greet", "-d", f"@{tmp_path}/greet/event.json", *where)
        assert (called.returncode, json.loads(called.stdout)) == (0, {"message": "Hello, ada!"}), called.stderr + logs(data)
        job = called.stderr.split("job ")[1].split()[0]
        until(lambda: "greeting ada" in hearth("logs", job, *where).stdout)
        traced = hearth("trace", job, *where)
        assert traced.returncode == 0, traced.stderr
        assert "gateway" in traced.stdout
        submitted = hearth("invoke", "greet", "--async", "-d", '{"name": "eve"}', *where)
        assert submitted.returncode == 0, submitted.stderr
        assert "greet" in hearth("functions", *where).stdout
        (tmp_path / "greet" / "function.yaml").write_text("name: greet\nmemroy_mb: 128\n")
        refused = hearth("deploy", str(tmp_path / "greet"), *where)
        assert refused.returncode == 1
        assert "line 2" in refused.stderr
        assert "memory_mb" in refused.stderr


def test_without_an_engine_it_starts_and_says_what_is_off(data: DataDir, tmp_path: Path) -> None:
    env = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    port = free_port()
    try:
        done = hearth("up", "--detach", "--no-install", "--data", str(data.root), "--port", str(port), env=env)
        assert done.returncode == 0, done.stdout + done.stderr + logs(data)
        assert "off: " in done.stdout
        assert "unset DOCKER_HOST" in done.stdout
        assert all(row["state"] == "ready" for row in status(data)["processes"])
        assert hearth("doctor", "--data", str(data.root), env=env).returncode == 0
    finally:
        hearth("down", "--data", str(data.root), env=env)


@pytest.mark.long
@pytest.mark.docker
def test_a_cluster_answers_while_one_broker_is_away(data: DataDir, tmp_path: Path) -> None:
    """While the two others choose who leads, calls are refused with Retry-After; then they are answered."""
    with up(data, "--profile", "cluster"):
        where = ("--data", str(data.root))
        hearth("new", "greet", "--in", str(tmp_path))
        assert hearth("deploy", str(tmp_path / "greet"), *where).returncode == 0
        for name in ("broker-1", "broker-2", "broker-3"):
            pid = next(row["pid"] for row in status(data)["processes"] if row["name"] == name)
            os.kill(pid, signal.SIGKILL)
            until(lambda: hearth("invoke", "greet", *where).stdout == '{"message":"Hello, world!"}\n', within_s=60)
            until(lambda: all(row["state"] == "ready" for row in status(data)["processes"]), within_s=60)
