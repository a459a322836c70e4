"""The command itself: it fills every row, and leaves nothing behind, however it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hearth_cli.bench import tracing
from hearth_cli.local import ports
from hearth_cli.local.data_dir import DataDir
from hearth_cli.local.engine_api import EngineApi

pytestmark = [pytest.mark.platform, pytest.mark.docker]

#: The budget table, as its rows begin; the others are told as left out.
ROWS = (
    "idle platform, all services and the broker",
    "reading a container's memory and CPU",
    "warm call, one client, process",
    "warm call, one client, reuse",
    "first call of a new Python function, generic pool full",
    "first call with a 50 MB bundle",
    "200 clients, reuse",
    "CPU per call under that load, reuse: edge (gateway)",
    "CPU per call under that load, reuse: scheduling (scheduler)",
    "200 clients, process",
    "CPU per call under that load, process: edge (gateway)",
    "CPU per call under that load, process: scheduling (scheduler)",
    "refusal (429) under that load",
    "a 128 MiB output file",
    "a 128 MiB result",
    "profile single: warm call, one client, process",
    "profile single: warm call, one client, reuse",
    "profile single: 200 clients, reuse",
    "profile single: 200 clients, process",
    "fallback link: warm call, one client, process",
    "fallback link: warm call, one client, reuse",
    "fallback link: 200 clients, reuse",
    "fallback link: 200 clients, process",
    tracing.WHAT,
    "kill -9 of any one service or the broker under load",
)


def bench(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """With a temporary directory of its own, so that what is left in it can be seen."""
    temporary = folder / "tmp"
    temporary.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "hearth_cli", "bench", "--quick", "--data", str(folder / "data"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip


def left_behind(folder: Path) -> list[str]:
    """Processes that hold a file or an argument below the folder, containers of a platform that lived there, files."""
    found = [str(path) for path in (folder / "tmp").iterdir()]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in told and int(entry.name) != os.getpid():
            found.append(told.decode(errors="replace")[:200])
    return found


def until_said(running: "subprocess.Popen[str]", word: str) -> str:
    assert running.stderr is not None
    said = ""
    while word not in said:
        line = running.stderr.readline()
        assert line, f"it ended: {said}"
        said += line
    return said


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("starting the broker", signal.SIGINT),
        ("idle memory", signal.SIGTERM),
        ("warm calls, process", signal.SIGINT),
    ],
    ids=["starting", "waiting", "under load"],
)
def test_a_run_that_is_broken_off_leaves_nothing(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    running = bench(tmp_path)
    until_said(running, moment)
    platforms = [DataDir(path).platform() for path in (tmp_path / "tmp").glob("hearth-bench-*/data")]
    assert len(platforms) == 1
    running.send_signal(number)
    out, _ = running.communicate(timeout=100)
    assert running.returncode == 128 + number
    assert out == ""
    assert left_behind(tmp_path) == []
    assert EngineApi().containers([f"hearth.platform={platforms[0]}"]) == []


def test_a_platform_that_ran_before_runs_on_without_what_was_measured(tmp_path: Path) -> None:
    """Given a platform of the user's, then it is the one that is measured, and breaking off leaves no function on it."""
    place = ["--data", str(tmp_path / "data")]
    hearth = [sys.executable, "-m", "hearth_cli"]
    port = str(ports.choose(("http",), {})["http"])
    subprocess.run([*hearth, "up", "--detach", "--no-install", "--port", port, *place], check=True, capture_output=True)
    try:
        running = bench(tmp_path)
        until_said(running, "warm calls, reuse")
        assert list((tmp_path / "tmp").glob("hearth-bench-*/data")) == [], "no other platform was started"
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=100)
        assert running.returncode == 130
        told = subprocess.run([*hearth, "functions", "--json", *place], check=True, capture_output=True)
        assert json.loads(told.stdout)["functions"] == []
        told = subprocess.run([*hearth, "status", "--json", *place], check=True, capture_output=True)
        assert {process["state"] for process in json.loads(told.stdout)["processes"]} == {"ready"}
    finally:
        subprocess.run([*hearth, "down", *place], check=True, capture_output=True)


@pytest.mark.long
@pytest.mark.timeout(420)
def test_a_quick_run_fills_every_row_within_three_minutes(tmp_path: Path) -> None:
    running = bench(tmp_path, "--json")
    out, err = running.communicate(timeout=400)
    told = json.loads(out)
    assert running.returncode == (1 if any(row["verdict"] == "MISSED" for row in told["rows"]) else 0), err
    whats = [row["what"] for row in told["rows"]]
    assert [next((what for what in whats if what.startswith(row)), None) for row in ROWS] == whats, whats
    assert not [row for row in told["rows"] if row["value"] == "failed"]
    assert len(told["left_out"]) == 1
    assert told["seconds"] < 180
    assert left_behind(tmp_path) == []
