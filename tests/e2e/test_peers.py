"""Services talk only through the broker: read off their open sockets while they work."""

import asyncio
import os
from pathlib import Path

import pytest
from tests.support.platform import Client

pytestmark = [pytest.mark.platform, pytest.mark.docker]


def connections(pid: int) -> tuple[set[tuple[str, int]], set[int]]:
    """Established TCP peers of a process, and its listening ports."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = entry.readlink().as_posix()
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    peers: set[tuple[str, int]] = set()
    listening: set[int] = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] not in inodes:
            continue
        address, port = fields[2].split(":")
        own = int(fields[1].split(":")[1], 16)
        if fields[3] == "0A":
            listening.add(own)
        elif fields[3] == "01":
            ip = ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
            peers.add((ip, int(port, 16)))
    return peers, listening


async def test_every_process_waits_its_turn(hearth: Client) -> None:
    """Broker, services, and what runs in the sandboxes: none pushes another off its core in the middle of its work."""
    policy = "import os\ndef handle(event, context):\n    return os.sched_getscheduler(0)\n"
    await hearth.deploy("policy", policy)
    assert (await hearth.invoke("policy")).json == os.SCHED_BATCH
    policies = {one["name"]: os.sched_getscheduler(one["pid"]) for one in hearth.platform.status()["processes"]}
    assert policies == dict.fromkeys(policies, os.SCHED_BATCH)


async def test_each_service_has_the_broker_for_its_only_peer(hearth: Client) -> None:
    """Given a platform under load, then every connection of a service goes to the broker, or was opened by one of its callers."""
    await hearth.deploy("busy")
    status = hearth.platform.status()
    ports = {process["name"]: process["port"] for process in status["processes"]}
    broker = next(port for name, port in ports.items() if name.startswith(("broker", "nats")))
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await hearth.invoke("busy")

    loads = [asyncio.create_task(load()) for _ in range(4)]
    seen: dict[str, set[int]] = {}
    for _ in range(20):
        for process in status["processes"]:
            name = process["name"]
            if name.startswith(("broker", "nats", "supervisor")):
                continue
            peers, listening = connections(process["pid"])
            callers = {peer for peer in peers if any(_accepted(process["pid"], peer, port) for port in listening)}
            seen.setdefault(name, set()).update(port for ip, port in peers - callers)
        await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*loads)
    assert len(seen) >= 7
    assert all(ports == {broker} for ports in seen.values()), seen


def _accepted(pid: int, peer: tuple[str, int], own_port: int) -> bool:
    """Whether this connection came in on a port the process listens on."""
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and int(fields[2].split(":")[1], 16) == peer[1] and int(fields[1].split(":")[1], 16) == own_port:
            return True
    return False
