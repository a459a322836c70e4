"""The ai-proxy as the process that it is, on a real broker that holds it to its permissions."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hearth_contracts import registry
from hearth_contracts.permissions import for_service
from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker with one user of full rights and the ai-proxy's own."""
    allowed = for_service(registry.AI_PROXY, "ai-proxy-1")
    extra = f"""
authorization {{ users: [
  {{ user: admin, password: admin }}
  {{ user: "ai-proxy-1", password: secret, permissions: {{
      publish: {{ allow: {json.dumps(allowed.publish)} }}, subscribe: {{ allow: {json.dumps(allowed.subscribe)} }}
  }} }}
] }}
"""
    broker = Broker(tmp_path_factory.mktemp("guarded"), extra=extra)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
async def admin(guarded: Broker) -> AsyncIterator[NatsBus]:
    async with connect(url=guarded.url, instance="admin", user="admin", password="admin") as bus:
        await provision(bus)
        for stream in ("AI", "AI_TOKENS"):
            for consumer in await bus.consumer_names(stream):
                await bus.delete_consumer(stream, consumer)
            await bus.purge(stream)
        yield bus


class Process:
    """One ai-proxy and everything it has ever printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.output = b""
        self.ready = asyncio.Event()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.output += line
            if b'"event": "ready"' in line:
                self.ready.set()

    async def stop(self) -> int:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(self._process.wait(), 20)
        await self._reader
        return code


@pytest.fixture
async def proxy(guarded: Broker, admin: NatsBus, tmp_path: Path) -> AsyncIterator[Process]:
    credentials = tmp_path / "credentials"
    credentials.write_text(json.dumps({"user": "ai-proxy-1", "password": "secret"}))
    process = Process(
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hearth_ai_proxy", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={
                "PATH": os.environ["PATH"], "HEARTH_NATS_URL": guarded.url, "HEARTH_INSTANCE": "ai-proxy-1",
                "HEARTH_NATS_CREDENTIALS": str(credentials), "HEARTH_DATA_DIR": str(tmp_path / "data"),
                "HEARTH_LOG_LEVEL": "DEBUG",
            },
        )
    )  # fmt: skip
    await asyncio.wait_for(process.ready.wait(), 20)
    yield process
    await process.stop()
