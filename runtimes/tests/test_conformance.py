"""The Python runtime plays every transcript as a plain process; and the suite notices a runtime that does not conform."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[1] / "python"
FUNCTIONS = Path(__file__).parents[1] / "conformance" / "functions" / "python"


@pytest.fixture
def start(tmp_path: Path, conformance_client) -> Iterator[Callable]:
    """A supervisor on a socket pair, and a greeted client at the other end."""
    started = []

    def start(runtime: Path = RUNTIME):
        for folder in ("code", "tmp", "output"):
            (tmp_path / folder).mkdir(exist_ok=True)
        ours, its = socket.socketpair()
        command = [sys.executable, "-I", "-S", str(runtime / "supervisor.py"), f"fd:{its.fileno()}", str(tmp_path)]
        process = subprocess.Popen(command, pass_fds=[its.fileno()], stderr=subprocess.PIPE)
        its.close()
        started.append((ours, process))
        return conformance_client.Client(ours.fileno(), ours.fileno())

    yield start
    for ours, process in started:
        ours.close()
        process.communicate(timeout=10)  # with its link the supervisor ends, and everything it started
    os.chmod(tmp_path / "code", 0o755)


def test_the_python_runtime_conforms(start, conformance_run, transcript):
    client = start()
    client.greet()
    assert list(conformance_run.play(client, transcript, FUNCTIONS)) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("hearth_calls.py", "LOG_BYTES_MAX = 1024 * 1024", "LOG_BYTES_MAX = 4096 * 1024", "flood"),
        ("hearth_supervisor.py", "if call.credit(kind, stream) < size:", "if False:", "slow-reader"),
        ("hearth_supervisor.py", "if child.paused and call.stopping:", "if False:", "hang-unread"),
        ("hearth_supervisor.py", "if self._left_behind():", "if False:", "leftover"),
        ("hearth_supervisor.py", "not processes.empty(self._folders.emptied)", "False", "scratch"),
        ("hearth_supervisor.py", "call.grace_s, lambda: self._kill(child)", "call.grace_s, lambda: None", "hang-hard"),
        ("hearth_supervisor.py", '= spec["isolation"] != "reuse"', "= False", "process"),
        ("hearth_json.py", 'None, ":", ",", False, False, False)', 'None, ":", ",", False, False, True)', "bad-result"),
    ],
)
def test_a_runtime_without_a_guard_is_noticed(start, conformance_run, conformance_client, tmp_path, file, old, new, name):
    crippled = tmp_path / "runtime"
    shutil.copytree(RUNTIME, crippled, ignore=shutil.ignore_patterns("__pycache__"))
    text = (crippled / file).read_text()
    assert text.count(old) == 1
    (crippled / file).write_text(text.replace(old, new))
    if name == "process":  # supervisor and child each see to it alone
        child = crippled / "hearth_child.py"
        child.write_text(child.read_text().replace(old, new))
    client = start(crippled)
    client.greet()
    with pytest.raises((AssertionError, conformance_client.Broken)):
        original = conformance_client.Client._next
        client._next = lambda timeout_s=5.0: original(client, min(timeout_s, 5.0))
        assert list(conformance_run.play(client, conformance_run.transcripts()[name], FUNCTIONS)) == []


def test_frames_out_of_turn_end_the_link(start, conformance_client):
    for kind, payload in ((conformance_client.CALL, b"\0\0\0\2{}"), (99, b""), (conformance_client.CODE, b"x")):
        client = start()
        client.greet()
        client.send(kind, payload, 1)
        assert client.receive(10) is None


def test_on_a_keyed_link_a_frame_without_its_code_ends_everything(tmp_path, conformance_client):
    """As on stdin and stdout; the supervisor is not pid 1 here, which changes nothing about its frames."""
    key = bytes(range(32))
    for forge in (False, True):
        for folder in ("code", "tmp", "output"):
            (tmp_path / folder).mkdir(exist_ok=True)
        with subprocess.Popen(
            [sys.executable, "-I", "-S", str(RUNTIME / "supervisor.py"), "stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            check_keyed(process, conformance_client, key, forge)


def check_keyed(process, conformance_client, key, forge):
    client = conformance_client.Client(process.stdout.fileno(), process.stdin.fileno(), key=key)
    assert client.greet()["runtime"] == "python"
    if forge:
        client._codes[0] += 1
    client.send(conformance_client.LOAD, b'{"isolation": "process"}')
    if forge:
        assert client.receive(10) is None
        process.stdin.close()
        assert b"code is wrong" in process.stderr.read()
    else:
        with pytest.raises(conformance_client.Broken):
            client.receive(0.3)
        process.stdin.close()
    assert process.wait(10) == int(forge)
