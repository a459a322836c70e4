"""A whole platform of a test's own, started the way a person starts it, and a client that writes down what it was told."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from hearth_kit.pytest_plugin import free_port

ROOT = Path(__file__).resolve().parents[2]

HELLO = "def handle(event, context):\n    return {'hello': event.get('name', 'world')}\n"


def hearth(*words: str, env: dict[str, str] | None = None, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """The hearth command, as the script would run it."""
    return subprocess.run(
        [sys.executable, "-m", "hearth_cli", *words],
        cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


@dataclass
class Platform:
    """One running platform."""

    data: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.data / "admin-key").read_text().strip()

    def status(self) -> dict[str, Any]:
        done = hearth("status", "--json", "--data", str(self.data))
        return json.loads(done.stdout)

    def pids(self) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in self.status()["processes"] if process["pid"]}

    def pid(self, prefix: str) -> int:
        for name, pid in self.pids().items():
            if name.startswith(prefix):
                return pid
        raise LookupError(f"no process {prefix}: {self.status()['processes']}")

    def kill(self, prefix: str) -> int:
        """As a crash would: the process has no say in it."""
        pid = self.pid(prefix)
        os.kill(pid, signal.SIGKILL)
        return pid

    def logs(self, last: int = 40) -> str:
        """The last lines of every service, for a failing test to show."""
        parts = []
        for path in sorted((self.data / "logs").glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-last:]))
        return "\n".join(parts)


@contextlib.contextmanager
def started(data: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Platform]:
    """`up --detach`, then `down`, whatever happens between."""
    platform = Platform(data, free_port())
    done = hearth("up", "--detach", "--no-install", "--data", str(data), "--port", str(platform.port), *options, env=env)
    try:
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{platform.logs()}"
        yield platform
    finally:
        hearth("down", "--data", str(data))


@dataclass
class Told:
    """What the client was told of one call."""

    job: str
    status: int
    body: bytes
    lane: str


@dataclass
class Client:
    """Speaks HTTP and keeps the log that the checker compares with the stores."""

    platform: Platform
    session: aiohttp.ClientSession
    told: list[Told] = field(default_factory=list)

    async def deploy(self, name: str, source: str = HELLO, **spec: Any) -> dict[str, Any]:
        body = {"spec": {"name": name, "runtime": "python", "handler": "main:handle", **spec}, "source": source}
        answer = await self.call("PUT", f"/v1/functions/{name}", json=body)
        assert answer.status in (200, 201), answer
        await self.until(lambda: self._is_ready(name), 30, f"{name} is not READY")
        return json.loads(answer.body)

    async def _is_ready(self, name: str) -> bool:
        return json.loads((await self.call("GET", f"/v1/functions/{name}")).body)["state"] == "READY"

    async def call(self, method: str, path: str, **options: Any) -> "Answer":
        async with self.session.request(method, self.platform.url + path, **options) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def invoke(self, name: str, event: object = None, *, headers: dict[str, str] | None = None) -> "Answer":
        answer = await self.call("POST", f"/v1/functions/{name}/invoke", json=event if event is not None else {}, headers=headers)
        if "x-hearth-job" in answer.headers:
            self.told.append(Told(answer.headers["x-hearth-job"], answer.status, answer.body, "sync"))
        return answer

    async def submit(self, name: str, event: object = None) -> str:
        answer = await self.call(
            "POST", f"/v1/functions/{name}/invoke", json=event if event is not None else {}, headers={"Prefer": "respond-async"}
        )
        assert answer.status == 202, answer
        job = answer.headers["x-hearth-job"]
        self.told.append(Told(job, 202, b"", "async"))
        return job

    async def job(self, job: str, wait_s: int = 0) -> dict[str, Any]:
        return json.loads((await self.call("GET", f"/v1/jobs/{job}" + (f"?wait={wait_s}" if wait_s else ""))).body)

    async def final(self, job: str, within_s: float = 60) -> dict[str, Any]:
        """The job once it has ended."""
        deadline = time.monotonic() + within_s
        while True:
            state = await self.job(job, wait_s=min(20, max(1, int(deadline - time.monotonic()))))
            if state.get("state") in ("SUCCESS", "FAILED"):
                return state
            assert time.monotonic() < deadline, f"{job} has not ended: {state}"

    async def until(self, condition: Callable[[], Any], within_s: float, what: str) -> None:
        """Poll until it holds."""
        deadline = time.monotonic() + within_s
        while True:
            held = condition()
            if asyncio.iscoroutine(held):
                held = await held
            if held:
                return
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextlib.asynccontextmanager
async def client(platform: Platform) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers={"x-api-key": platform.key}, timeout=timeout, connector=connector) as session:
        yield Client(platform, session)
