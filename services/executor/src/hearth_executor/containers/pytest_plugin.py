"""For tests: every container that any test makes, in whatever process, is compared with the profile.

Loaded by the root's `conftest.py`. It listens to the engine's own events, so that a container made by an executor in another
process, or kept warm by a pool, counts as much as one a test made by hand. A deviation fails the session. Platforms that
already run when the session starts are somebody else's, perhaps of another version.
"""

import http.client
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hearth_executor.containers import profile
from hearth_executor.containers.engine import DEFAULT_SOCKET

#: The label of a container that breaks the profile on purpose, to see that this check bites.
LABEL_EXPECTED = "hearth.test-deviates"

#: From the engine's "started" to the program's own first instruction it takes milliseconds, seconds.
STARTED_S_MAX = 1.0


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(DEFAULT_SOCKET)


class ProfileWatch:
    """Listens while entered. `seen` counts containers compared by what the engine says of them, `seen_inside` those whose first
    process was looked at, too; `wrong` names each deviation."""

    def __init__(self, *, excused_by: str = LABEL_EXPECTED) -> None:
        self._excused_by = excused_by
        self.seen = 0
        self.seen_inside = 0
        self.wrong = list[str]()
        self._others = set[str]()
        self._stream: _Connection | None = None

    def start(self) -> bool:
        """False where there is no engine: then there are no containers either."""
        filters = json.dumps({"type": ["container"], "event": ["create", "start"], "label": [profile.LABEL_PLATFORM]})
        stream = _Connection("engine", timeout=10)
        try:
            stream.request("GET", f"/events?filters={quote(filters)}")
            response = stream.getresponse()
        except OSError:
            stream.close()
            return False
        stream.sock.settimeout(None)
        self._others = {entry["Labels"][profile.LABEL_PLATFORM] for entry in self._listed()}
        self._stream = stream
        self._thread = threading.Thread(target=self._listen, args=(response,), name="profile-watch", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        if self._stream is not None:
            self._stream.sock.shutdown(socket.SHUT_RDWR)
            self._thread.join(5)
            self._stream.close()

    def _listen(self, response: http.client.HTTPResponse) -> None:
        try:
            while line := response.readline():
                event = json.loads(line)
                self._compare(event["Actor"]["ID"], inside=event["Action"] == "start")
        except (OSError, ValueError, http.client.HTTPException):
            return  # the end, by `stop` or by the engine's

    def _compare(self, container: str, *, inside: bool) -> None:
        inspected = self._get(f"/containers/{container}/json")
        if inspected is None:
            return
        labels = inspected["Config"].get("Labels") or {}
        if labels.get(self._excused_by) or labels.get(profile.LABEL_PLATFORM) in self._others:
            return
        if inside:
            self._look_inside(inspected)
            return
        self.seen += 1
        self.wrong += [f"{inspected['Name']}: {deviation}" for deviation in profile.deviations(inspected)]

    def _look_inside(self, inspected: dict[str, Any]) -> None:
        """What the kernel says of its first process, once that is the image's program and not the engine's."""
        deadline = time.monotonic() + STARTED_S_MAX
        while time.monotonic() < deadline:
            try:
                status = Path(f"/proc/{inspected['State']['Pid']}/status").read_text()
            except OSError:
                return  # it has ended
            if not status.startswith("Name:\trunc"):
                self.seen_inside += 1
                self.wrong += [f"{inspected['Name']}: inside, {deviation}" for deviation in profile.inside_deviations(status)]
                return
            time.sleep(0.002)

    def _listed(self) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [profile.LABEL_PLATFORM]})
        return self._get(f"/containers/json?all=1&filters={quote(filters)}") or []

    def _get(self, path: str) -> Any:
        connection = _Connection("engine", timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read()
            return json.loads(text) if response.status == 200 else None
        except OSError:
            return None  # the engine was stopped by a test; the events end too
        finally:
            connection.close()


_watch = ProfileWatch()


def pytest_sessionstart(session: pytest.Session) -> None:
    _watch.start()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    _watch.stop()
    if _watch.wrong:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _watch.seen:
        terminalreporter.write_line(
            f"containers compared with the hardened profile: {_watch.seen}, from inside {_watch.seen_inside}"
        )
    for wrong in sorted(set(_watch.wrong)):
        terminalreporter.write_line(f"DEVIATES from the hardened profile: {wrong}", red=True)


@pytest.fixture
def profile_watch() -> ProfileWatch:
    """What has been compared so far in this session."""
    return _watch
