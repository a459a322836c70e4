"""How a service lives: ready, probed, stopped in phases, ended by whatever fails in it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from hearth_contracts import subjects
from hearth_contracts.fleet import Presence
from hearth_kit.pytest_plugin import free_port

from .conftest import until

pytestmark = pytest.mark.broker


class Service:
    """`example_service.py` in a process of its own."""

    def __init__(self, url, **settings):
        self.port = free_port()
        environment = {
            **os.environ, "HEARTH_NATS_URL": url, "HEARTH_INSTANCE": "example-1", "HEARTH_METRICS_PORT": str(self.port),
            **{f"HEARTH_{name.upper()}": value for name, value in settings.items()},
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("example_service.py"))],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said, self.logged = [], []
        self._threads = [
            threading.Thread(target=self._read, args=(stream, into), daemon=True)
            for stream, into in ((self.process.stdout, self.said), (self.process.stderr, self.logged))
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream, into):
        for line in stream:
            into.append(line.rstrip("\n"))

    async def ended(self):
        code = await asyncio.to_thread(self.process.wait, 20)
        for thread in self._threads:
            thread.join()
        return code

    async def get(self, path):
        def ask():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        return await asyncio.to_thread(ask)

    @property
    def log(self):
        return [json.loads(line) for line in self.logged if line.startswith("{")]


@pytest.fixture
def start():
    started = []

    def run(url, **settings):
        started.append(Service(url, **settings))
        return started[-1]

    yield run
    for service in started:
        service.process.kill()
        service.process.wait()
        for thread in service._threads:
            thread.join()
        service.process.stdout.close()
        service.process.stderr.close()


async def test_a_stop_goes_through_its_phases_in_order(broker, bus, start):
    """Intake, work, side tasks, and last the bus: what is still said on the way out arrives."""
    service = start(broker.url)
    await until(lambda: "ready" in service.said)
    assert (await bus.request("example.ask")).body == b"yes"
    service.process.send_signal(signal.SIGTERM)
    assert await service.ended() == 0
    assert service.said == ["ready", "intake closed True", "work done True", "side task ended True", "bus closed"]
    assert [line["event"] for line in service.log] == ["ready"]
    assert {(line["service"], line["instance"], line["level"]) for line in service.log} == {("example", "example-1", "info")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_either_signal_stops_it(broker, start, number):
    service = start(broker.url)
    await until(lambda: "ready" in service.said)
    service.process.send_signal(number)
    assert await service.ended() == 0


async def test_a_side_task_that_fails_ends_the_process_with_its_error(broker, start):
    service = start(broker.url, mode="crash")
    assert await service.ended() == 1
    assert "intake closed" not in " ".join(service.said)
    [last] = [line for line in service.log if line["level"] == "critical"]
    assert "the side task has a bug" in last["exception"]


async def test_a_side_task_that_simply_ends_does_not(broker, start):
    service = start(broker.url, mode="end")
    await until(lambda: "ready" in service.said and "side task ended True" in service.said)
    service.process.send_signal(signal.SIGTERM)
    assert await service.ended() == 0


async def test_probes_say_how_it_is(broker, start):
    service = start(broker.url)
    await until(lambda: "ready" in service.said)
    assert await service.get("/healthz") == (200, '{"status":"ok"}')
    assert await service.get("/readyz") == (200, '{"status": "ready", "problems": {}}')
    status, text = await service.get("/metrics")
    assert status == 200
    assert "hearth_bus_reconnects_total 0.0" in text
    assert "hearth_bus_rebinds_total 0.0" in text
    assert (await service.get("/other"))[0] == 404


async def test_what_keeps_it_from_being_ready_is_said_with_its_fix(broker, start):
    service = start(broker.url, mode="not-ready")
    await until(lambda: "ready" in service.said)
    status, text = await service.get("/readyz")
    assert (status, json.loads(text)["problems"]) == (503, {"store": "mount the disk"})
    assert (await service.get("/healthz"))[0] == 200


async def test_a_lost_broker_makes_it_unready_and_its_return_ready(own_broker, start):
    service = start(own_broker.url)
    await until(lambda: "ready" in service.said)
    own_broker.kill()
    while (found := await service.get("/readyz"))[0] != 503:
        await asyncio.sleep(0.02)
    assert list(json.loads(found[1])["problems"]) == ["broker"]
    await asyncio.to_thread(own_broker.start)
    while (await service.get("/readyz"))[0] != 200:
        await asyncio.sleep(0.02)
    service.process.send_signal(signal.SIGTERM)
    assert await service.ended() == 0


async def test_a_stop_while_the_broker_is_away_ends_soon(own_broker, start):
    service = start(own_broker.url)
    await until(lambda: "ready" in service.said)
    own_broker.kill()
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert await service.ended() == 0
    assert time.monotonic() - began < 8
    assert service.said[-1] == "bus closed"


async def test_a_stop_while_it_waits_for_its_first_broker_ends_at_once(start):
    service = start(f"nats://127.0.0.1:{free_port()}")
    # It handles the signal from the moment on which it waits; before, the signal would simply end it.
    await until(lambda: _handles(service.process.pid, signal.SIGTERM))
    service.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert await service.ended() == 0
    assert time.monotonic() - began < 8


def _handles(pid, number):
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


async def test_it_tells_that_it_lives(broker, bus, start):
    heard = []
    await bus.subscribe(subjects.PRESENCE_ALL, heard.append)
    service = start(broker.url)
    await until(lambda: len(heard) >= 2 and heard[-1].meta(Presence).ready)
    presence = heard[-1].meta(Presence)
    assert (presence.service, presence.instance, presence.pid) == ("example", "example-1", service.process.pid)
    assert heard[-1].subject == subjects.presence("example", "example-1")
    assert os.sched_getscheduler(service.process.pid) == os.SCHED_BATCH  # it waits its turn on a busy machine


async def test_a_broker_too_old_is_refused_with_what_to_do(start):
    async def speak(reader, writer):
        writer.write(b'INFO {"server_id":"X","version":"2.9.25","max_payload":1048576,"headers":true}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        service = start(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert await service.ended() == 1
    assert "it is 2.9.25, Hearth needs 2.12.0 or later: install a newer nats-server" in "\n".join(service.logged)


async def test_a_probe_that_speaks_nonsense_disturbs_nobody(broker, start):
    service = start(broker.url)
    await until(lambda: "ready" in service.said)
    for nonsense in (b"\r\n\r\n", b"GET\r\n\r\n", b"x" * 100_000, b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(nonsense)
        writer.write_eof()
        await reader.read()
        writer.close()
    assert (await service.get("/healthz"))[0] == 200
