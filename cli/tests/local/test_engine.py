"""The machine's engine: how it stands, what mends it, and whose containers go."""

import os
import socket
import threading

import pytest

from hearth_cli.local import engine
from hearth_cli.local.engine import EngineNotReady, inspect_engine, install_engine
from hearth_cli.local.engine_api import EngineApi


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_not_installed(nothing_installed, tmp_path):
    state = inspect_engine(str(tmp_path / "docker.sock"))
    assert (state.kind, state.ready) == ("missing", False)
    assert state.fix


def test_installed_and_not_running(monkeypatch, tmp_path):
    (tmp_path / "dockerd").write_text("#!/bin/sh\n")
    (tmp_path / "dockerd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    state = inspect_engine(str(tmp_path / "docker.sock"))
    assert state.kind == "stopped"
    assert "does not run" in state.message
    assert state.fix


def test_a_socket_left_behind_is_a_stopped_engine(tmp_path):
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as once:
        once.bind(path)
    assert inspect_engine(path).kind == "stopped"


def test_one_that_says_nothing_sensible_is_a_stopped_engine(tmp_path):
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")

        thread = threading.Thread(target=answer)
        thread.start()
        assert inspect_engine(path).kind == "stopped"
        thread.join()


def test_not_for_this_user(tmp_path):
    """Asked as somebody else than root, for whom permissions count."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
            folder.chmod(folder.stat().st_mode | 0o055)
        asked = os.fork()
        if asked == 0:
            os.setuid(65534)
            state = inspect_engine(str(path))
            os._exit(0 if state.kind == "forbidden" and "usermod -aG docker" in state.fix else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]) == 0


def test_without_root_nothing_is_installed_and_the_command_is_named(nothing_installed, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EngineNotReady, match="no container engine") as caught:
        install_engine(pytest.fail, str(tmp_path / "docker.sock"))
    assert caught.value.fix


@pytest.mark.docker
def test_one_that_runs_is_left_alone():
    state = inspect_engine()
    assert state.ready
    assert state.version in state.message
    assert install_engine(pytest.fail) == state


@pytest.mark.docker
def test_only_the_named_platforms_containers_are_removed():
    api = EngineApi()
    image = api.images("hearth.runtime=python")[0]["RepoTags"][0]
    names = {f"clitest{os.getpid()}a": [], f"clitest{os.getpid()}b": []}
    try:
        for platform, made in names.items():
            labels = {"hearth.platform": platform, "hearth.test-deviates": "made by hand"}
            config = {"Image": image, "Labels": labels, "HostConfig": {"NetworkMode": "none"}}
            made += [
                api._json("POST", "/containers/create", body=__import__("json").dumps(config).encode())["Id"] for _ in range(2)
            ]
        one, other = names
        assert engine.remove_containers(one) == 2
        assert engine.remove_containers(one) == 0
        assert len(api.containers([f"hearth.platform={other}"])) == 2
    finally:
        for platform in names:
            engine.remove_containers(platform)
