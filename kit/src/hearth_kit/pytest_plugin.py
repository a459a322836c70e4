"""A real broker for tests, loaded by the root's `conftest.py`.

`broker` is one nats-server per test session, on a free port; `bus` is a connection of full rights with all streams made and
emptied for the test. `Broker` can also be started by a test that means to kill it.
"""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hearth_contracts import streams
from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.provision import provision


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_binary() -> str:
    """The wheel's nats-server, beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise RuntimeError("nats-server is not installed: ./hearth installs it with its other parts")
    return found


class Broker:
    """A nats-server of the test's own."""

    def __init__(self, folder: Path, *, extra: str = "", sync: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        sync_line = f"sync_interval: {sync}" if sync else ""
        (folder / "nats.conf").write_text(
            f"""
host: 127.0.0.1
port: {self.port}
max_payload: 1MB
jetstream {{
  store_dir: "{folder}/js"
  max_file_store: {streams.FILE_BYTES_MAX * 2}
  max_memory_store: {streams.MEMORY_BYTES_MAX * 2}
  {sync_line}
}}
feature_flags {{ js_ack_fc_v2: false }}
{extra}
"""
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [server_binary(), "-c", str(self.folder / "nats.conf"), "-l", str(self.folder / "nats.log")]
        )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=0.2):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "nats.log").read_text())
            time.sleep(0.02)  # a process outside the loop is starting; there is nothing to await

    def kill(self) -> None:
        """As a crash would: no chance to tidy up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="hearth-broker-") as folder:
        server = Broker(Path(folder))
        try:
            server.start()
            asyncio.run(_make(server.url))
            yield server
        finally:
            server.stop()


async def _make(url: str) -> None:
    async with connect(url=url, instance="bootstrap") as bus:
        await provision(bus)


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[NatsBus]:
    async with connect(url=broker.url, instance="test") as connection:
        for stream in streams.STREAMS:
            for consumer in await connection.consumer_names(stream.name):
                await connection.delete_consumer(stream.name, consumer)
            await connection.purge(stream.name)
        yield connection


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that this test may kill."""
    server = Broker(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()
