"""The platform under measurement: deploy, call, look up, and, when it is on this machine, its processes."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

TICKS_PER_S = 100.0  # USER_HZ, the same on every Linux
#: The longest answer is a result of 1 GiB.
ANSWER_S_MAX = 600


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    pid: int


class Target:
    """One running platform. `processes` is empty when it runs elsewhere."""

    def __init__(self, *, url: str, key: str, processes: Sequence[Process]) -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.key = key
        self.tls = parts.scheme == "https"
        self.processes = tuple(processes)
        self._session: aiohttp.ClientSession | None = None
        self._deployed: set[str] = set()
        self._putting: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers={"x-api-key": self.key}, timeout=aiohttp.ClientTimeout(total=ANSWER_S_MAX))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing that was deployed stays, also when a row was broken off."""
        assert self._session is not None
        try:
            await asyncio.gather(*self._putting, return_exceptions=True)
            for name in tuple(self._deployed):
                with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
                    await self.remove(name)
        finally:
            await self._session.close()

    async def json(self, method: str, path: str, **options: Any) -> Any:
        assert self._session is not None
        async with self._session.request(method, self.url + path, **options) as answer:
            body = await answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {body[:500].decode('utf-8', 'replace')}")
            return json.loads(body) if body else None

    async def timed(self, method: str, path: str, **options: Any) -> tuple[float, int, dict[str, str], int]:
        """Milliseconds, status, headers and bytes of one request, its body read and thrown away."""
        assert self._session is not None
        loop = asyncio.get_running_loop()
        started = loop.time()
        size = 0
        async with self._session.request(method, self.url + path, **options) as answer:
            async for chunk in answer.content.iter_chunked(1 << 20):
                size += len(chunk)
            return (loop.time() - started) * 1000, answer.status, {k.lower(): v for k, v in answer.headers.items()}, size

    async def deploy(self, name: str, source: str, **spec: Any) -> None:
        body = {"spec": {"name": name, "runtime": "python", "handler": "main:handle", **spec}, "source": source}
        await self._put(name, json=body)
        await self.ready(name)

    async def deploy_bundle(self, name: str, bundle: bytes, **spec: Any) -> None:
        form = aiohttp.FormData()
        form.add_field("spec", json.dumps({"name": name, "runtime": "python", "handler": "main:handle", **spec}),
                       content_type="application/json")  # fmt: skip
        form.add_field("code", bundle, filename="code.zip", content_type="application/zip")
        await self._put(name, data=form)
        await self.ready(name)

    async def _put(self, name: str, **options: Any) -> None:
        """Breaking this off does not take the request back: it is finished, so that what it made can be removed."""
        self._deployed.add(name)
        putting = asyncio.create_task(self.json("PUT", f"/v1/functions/{name}", **options), name="deploy")
        self._putting.add(putting)
        putting.add_done_callback(self._putting.discard)
        await asyncio.shield(putting)

    async def ready(self, name: str) -> None:
        async with asyncio.timeout(60):
            while (await self.json("GET", f"/v1/functions/{name}"))["state"] != "READY":
                await asyncio.sleep(0.05)

    async def remove(self, name: str) -> None:
        await self.json("DELETE", f"/v1/functions/{name}")
        self._deployed.discard(name)

    async def cancel(self, job: str) -> None:
        await self.json("DELETE", f"/v1/jobs/{job}")

    async def load(
        self, name: str, *, clients: int, requests: int = -1, seconds: float = 0, lead_s: float = 0, body: str = "{}"
    ) -> dict[str, Any]:
        """Drive one function from another process: so many requests, so many seconds, or whichever is over first."""
        request = (
            f"POST /v1/functions/{name}/invoke HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nx-api-key: {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )
        plan: dict[str, Any] = {"host": self.host, "port": self.port, "tls": self.tls, "request": request, "clients": clients}
        plan.update({"requests": requests, "seconds": seconds, "lead_s": lead_s})
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hearth_cli.bench.load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            out, _ = await process.communicate(json.dumps(plan).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise RuntimeError("the load generator failed")
        answers: dict[str, Any] = json.loads(out)
        return answers

    async def recorded(self, name: str, jobs: Sequence[str], *, wait_s: float = 30) -> list[str]:
        """Which of these answered jobs have no record in the stores, after waiting for the persister to catch up."""
        missing = set(jobs)
        async with asyncio.timeout(wait_s + 60):
            loop = asyncio.get_running_loop()
            deadline = loop.time() + wait_s
            while missing:
                cursor = ""
                while True:
                    query = f"/v1/jobs?function={name}&limit=500" + (f"&cursor={cursor}" if cursor else "")
                    page = await self.json("GET", query)
                    missing.difference_update(job["job"] for job in page["jobs"])
                    cursor = page.get("next") or ""
                    if not cursor or not missing:
                        break
                if not missing or loop.time() > deadline:
                    break
                await asyncio.sleep(0.5)
        return sorted(missing)

    # What this machine says of the processes

    def cpu_s(self, prefix: str) -> float:
        """CPU seconds so far of the processes whose name starts so."""
        total = 0.0
        for process in self.processes:
            if process.name.startswith(prefix):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
        return total

    def memory_mib(self, prefix: str = "") -> float:
        """Proportional memory now: shared pages are counted once over all who share them."""
        total = 0
        for process in self.processes:
            if process.name.startswith(prefix):
                for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total / 1024

    def forget_peaks(self) -> dict[str, float]:
        """Start the highest memory of each process anew; what each has now, in MiB."""
        for process in self.processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        return {process.name: _status_mib(process.pid, "VmRSS") for process in self.processes}

    def peaks_mib(self) -> dict[str, float]:
        """The highest memory of each process since `forget_peaks`, as the kernel kept it: no sample can miss it."""
        return {process.name: _status_mib(process.pid, "VmHWM") for process in self.processes}


def _status_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")
