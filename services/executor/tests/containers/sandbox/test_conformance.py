"""The same transcripts as for a plain process, played in real containers over both links."""

import asyncio
import importlib.util
import secrets
import socket
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hearth_executor.containers import fast_link
from hearth_executor.containers.container import Attached

pytestmark = pytest.mark.docker

CONFORMANCE = Path(__file__).parents[5] / "runtimes" / "conformance"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", CONFORMANCE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


client, run = load("client"), load("run")
TRANSCRIPTS = run.transcripts()


@pytest.mark.parametrize("name", TRANSCRIPTS)
async def test_the_python_runtime_conforms_in_a_container(start_container, mode, name):
    container = await start_container(mode)
    if mode == "fast":
        listener = fast_link._listen(container)
        listener.settimeout(20)
        ours, _ = await asyncio.to_thread(listener.accept)
        listener.close()
        key, pumps = None, []
    else:
        ours, its = socket.socketpair()
        key = secrets.token_bytes(32)
        pumps = await pump(its, container.attached)
    ours.setblocking(True)

    def play() -> list[str]:
        player = client.Client(ours.fileno(), ours.fileno(), key=key)
        player.greet()
        return list(run.play(player, TRANSCRIPTS[name], CONFORMANCE / "functions" / "python"))

    problems = await asyncio.to_thread(play)
    ours.close()
    for task in pumps:
        task.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)
    assert problems == []


async def pump(its: socket.socket, attached: Attached) -> list[asyncio.Task[None]]:
    """Between a plain socket and an attached container, whose output comes with the engine's headers."""
    reader, writer = await asyncio.open_connection(sock=its)

    async def to_container() -> None:
        while data := await reader.read(65536):
            attached.writer.write(data)

    async def from_container() -> None:
        try:
            while True:
                stream, size = struct.unpack(">B3xI", await attached.reader.readexactly(8))
                data = await attached.reader.readexactly(size)
                if stream == 1:
                    writer.write(data)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    return [asyncio.create_task(to_container()), asyncio.create_task(from_container())]
