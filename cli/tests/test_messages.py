"""What a person reads when something is wrong: what, why, and the one command that mends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hearth_cli.client import Answer, Gateway, refusal
from hearth_cli.commands import bodies, images, new
from hearth_cli.errors import CommandError, NotRunning, PortInUse
from hearth_cli.local import platform, ports
from hearth_cli.local.data_dir import DataDir
from hearth_cli.local.engine import inspect_engine


def hearth(*words: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hearth_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})


def test_a_command_that_is_none_is_answered_under_the_commands_own_name() -> None:
    done = hearth("invok", "hello")
    assert done.returncode == 2
    assert "Usage: hearth " in done.stderr
    assert "Did you mean 'invoke'?" in done.stderr


def test_commands_to_copy_name_the_platform_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(NotRunning) as refused:
        Gateway.open(tmp_path / "a folder")
    assert refused.value.fix.startswith(f"./hearth up --detach --data '{tmp_path}/a folder'")


def test_the_default_platform_needs_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_DATA_DIR", str(tmp_path))
    assert DataDir.at(None).option == ""
    assert DataDir(tmp_path / "other").option == f" --data {tmp_path}/other"


def test_what_a_killed_platform_left_behind_is_no_address(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.make()
    data.processes.write_text('{"address": "http://127.0.0.1:1"}')
    with pytest.raises(NotRunning, match="No platform runs"):
        Gateway.open(tmp_path)


def test_a_port_in_use_is_found_before_anything_is_made(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind((ports.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse) as refused:
            platform.check_port(DataDir(tmp_path / "data"), port)
        done = hearth("up", "--detach", "--no-install", "--data", str(tmp_path / "data"), "--port", str(port))
    assert refused.value.fix.endswith(f" --data {tmp_path}/data")
    assert done.returncode == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("told", ["{bad", "[1, 2", '{"name": ada}', " {'name': 'ada'}"])
def test_json_with_a_slip_never_reaches_a_function_as_text(told: str) -> None:
    with pytest.raises(CommandError, match="looks like JSON") as refused:
        bodies.read(told)
    assert "single quotes" in refused.value.fix


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("", (b"null", "application/json")),
        ('{"a": 1}', (b'{"a": 1}', "application/json")),
        ("7", (b"7", "application/json")),
        ("plain words", (b"plain words", "text/plain; charset=utf-8")),
    ],
)
def test_an_event_keeps_its_kind(told: str, expected: tuple[bytes, str]) -> None:
    assert bodies.read(told) == expected


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match=r"nowhere\.json cannot be read"):
        bodies.read("@nowhere.json")


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("E_FUNCTION_NOT_FOUND", "./hearth functions"),
        ("E_JOB_NOT_FOUND", "./hearth logs FUNCTION"),
        ("E_NO_CAPACITY", "./hearth doctor"),
        ("E_UNAUTHORIZED", "--key KEY"),
    ],
)
def test_a_refusal_names_a_command_and_not_a_route(code: str, fix: str) -> None:
    refused = refusal(Answer(404, {}, f'{{"title": "No.", "code": "{code}", "fix": "GET /v1/functions"}}'.encode()))
    assert refused.fix.startswith(fix)


def test_a_folder_with_code_gets_what_it_lacks_and_keeps_what_it_has(tmp_path: Path) -> None:
    """What `deploy` says of a folder without a function.yaml must mend it."""
    (tmp_path / "thumbs").mkdir()
    (tmp_path / "thumbs" / "main.py").write_text("mine\n")
    new.run("thumbs", tmp_path)
    assert (tmp_path / "thumbs" / "main.py").read_text() == "mine\n"
    assert "name: thumbs" in (tmp_path / "thumbs" / "function.yaml").read_text()


def test_an_engine_that_was_named_and_is_not_there_is_not_ours_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (f"unix://{tmp_path}/none.sock", "tcp://127.0.0.1:1"):
        monkeypatch.setenv("DOCKER_HOST", told)
        state = inspect_engine()
        assert (state.kind, state.fix) == ("elsewhere", "unset DOCKER_HOST")
        with pytest.raises(CommandError, match="DOCKER_HOST names"):
            images.build(force=False)


def test_a_folder_that_nobody_may_write_is_a_sentence() -> None:
    port = str(ports.choose(("http",), {})["http"])
    done = hearth("up", "--detach", "--no-install", "--data", "/sys/hearth", "--port", port)
    assert done.returncode == 1
    assert "/sys/hearth may not be read or written by this user" in done.stderr
    assert "Traceback" not in done.stderr
