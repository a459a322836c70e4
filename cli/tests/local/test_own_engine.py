"""An engine started by hand: it ends with the last platform that uses it, and only if an `up` started it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hearth_cli.local import engine, own_engine
from hearth_cli.local.data_dir import DataDir


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose engine answers nobody: whether containers are in it is asked of a real one elsewhere."""
    monkeypatch.setattr(engine, "PID_FILE", tmp_path / "dockerd.pid")
    monkeypatch.setattr(own_engine, "USERS_FILE", tmp_path / "dockerd.users")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")


@pytest.fixture
def dockerd(machine: None) -> "Iterator[subprocess.Popen[bytes]]":
    with subprocess.Popen(["bash", "-c", "exec -a dockerd sleep 300"]) as process:
        yield process
        process.kill()


def started(process: "subprocess.Popen[bytes]") -> None:
    engine.PID_FILE.write_text(str(process.pid))


def platform(folder: Path) -> DataDir:
    data = DataDir(folder)
    data.make()
    return data


def test_it_ends_with_the_last_platform(tmp_path: Path, dockerd: "subprocess.Popen[bytes]") -> None:
    one, two = platform(tmp_path / "one"), platform(tmp_path / "two")
    with own_engine.used(one):
        started(dockerd)
    with own_engine.used(two):
        pass
    assert own_engine.end(one) == f"{two.root} uses it"
    assert dockerd.poll() is None
    assert own_engine.end(two) == ""
    assert dockerd.wait(10) is not None


def test_a_platform_that_is_gone_keeps_nothing(tmp_path: Path, dockerd: "subprocess.Popen[bytes]") -> None:
    one = platform(tmp_path / "one")
    with own_engine.used(one):
        started(dockerd)
    known = json.loads(own_engine.USERS_FILE.read_text())
    known["platforms"][str(tmp_path / "killed")] = [1, "another process had this pid"]
    own_engine.USERS_FILE.write_text(json.dumps(known))
    assert own_engine.end(one) == ""
    assert dockerd.wait(10) is not None


def test_one_that_was_there_before_is_never_ended(tmp_path: Path, dockerd: "subprocess.Popen[bytes]") -> None:
    started(dockerd)
    one = platform(tmp_path / "one")
    with own_engine.used(one):
        pass
    assert own_engine.end(one) == ""
    assert dockerd.poll() is None


def test_a_file_that_was_cut_off_is_no_reason_to_end_anything(tmp_path: Path, dockerd: "subprocess.Popen[bytes]") -> None:
    one = platform(tmp_path / "one")
    with own_engine.used(one):
        started(dockerd)
    own_engine.USERS_FILE.write_text('{"engine": "')
    assert own_engine.end(one) == ""
    assert dockerd.poll() is None
