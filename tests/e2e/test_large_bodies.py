"""Bodies past the inline limit go by reference, both ways: whole, and flat in the memory of everyone who carries them."""

import asyncio
import hashlib
import io
import itertools
import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import Client, Platform, client, started

from hearth_contracts.calls import BODY_BYTES_MAX
from hearth_persister.domain import object_key

pytestmark = [pytest.mark.platform, pytest.mark.docker]

MIB = 1024 * 1024
SIZES = [
    pytest.param(96 * MIB, id="96MiB"),
    pytest.param(BODY_BYTES_MAX, id="1GiB", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
]

#: MiB by which the highest memory of a process may pass what it had before. The first two are promised to users; the
#: others lie near what was seen (4 and 0), so that a body that is gathered anywhere is found out.
GROWTH_MIB = {"executor": 16, "gateway": 32, "persister": 16, "scheduler": 8, "ai-proxy": 8}
#: The broker keeps what it read in the last ten seconds for as long as its own limit allows (450 seen without one).
BROKER_MIB_MAX = 560

TAKES = """
import hashlib

def handle(event, context):
    return {"size": len(event), "sha256": hashlib.sha256(event).hexdigest()}
"""

#: `block` is repeated with its number in front, so that no two pieces are alike and none can stand for another.
GIVES = """
import hashlib

PIECE = 1024 * 1024

def pieces(size, tail):
    block = hashlib.shake_256(b"hearth").digest(PIECE)
    for number in range(size // PIECE):
        yield number.to_bytes(8, "big") + block[8:]
    yield block[:size % PIECE + tail]

def handle(event, context):
    made = pieces(event["size"], event.get("tail", 0))
    return made if event.get("streamed") else b"".join(made)
"""

RETURNS = "def handle(event, context):\n    return event\n"


def pieces(size: int) -> Iterator[bytes]:
    """What `GIVES` makes, here."""
    block = hashlib.shake_256(b"hearth").digest(MIB)
    for number in range(size // MIB):
        yield number.to_bytes(8, "big") + block[8:]


def digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One executor: whatever passes through an executor passes through this one."""
    with started(tmp_path_factory.mktemp("large") / "data", env={"HEARTH_SLOTS": "2"}) as running:
        yield running


@pytest.fixture
async def speaker(platform: Platform) -> AsyncIterator[Client]:
    async with client(platform) as made:
        yield made


class Peaks:
    """The highest memory of each process since this was made, as the kernel kept it: no sample can miss it."""

    def __init__(self, platform: Platform) -> None:
        self._pids = {name: pid for name, pid in platform.pids().items() if name != "supervisor"}
        for pid in self._pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak so far
        self._before = {name: _status_mib(pid, "VmRSS") for name, pid in self._pids.items()}

    def check(self, what: str) -> None:
        highest = {name: _status_mib(pid, "VmHWM") for name, pid in self._pids.items()}
        grown = {name: round(mib - self._before[name], 1) for name, mib in highest.items()}
        print(f"{what}: memory grew by {grown} MiB")
        limits = {name: GROWTH_MIB.get(name.rpartition("-")[0]) for name in grown}
        over = {name for name, limit in limits.items() if limit is not None and grown[name] > limit}
        assert not over, f"{what}: {over} MiB, of {grown}"
        assert {name.rpartition("-")[0] for name in grown} == {*GROWTH_MIB, "broker"}
        assert highest["broker-1"] <= BROKER_MIB_MAX, highest


def _status_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


@dataclass(frozen=True)
class Got:
    """An answer of any size, of which only the digest was kept."""

    status: int
    job: str
    size: int
    sha256: str
    start: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.start)


async def call(speaker: Client, name: str, body: Any, *, content_type: str, length: int | None = None) -> Got:
    """The body goes out as it is made, without a length chunked; the answer is read piece by piece."""
    headers = {"content-type": content_type} | ({} if length is None else {"content-length": str(length)})
    whole, size, start = hashlib.sha256(), 0, b""
    url = f"{speaker.platform.url}/v1/functions/{name}/invoke"
    async with speaker.session.post(url, data=body, headers=headers) as answer:
        async for chunk in answer.content.iter_chunked(MIB):
            whole.update(chunk)
            size += len(chunk)
            start += chunk[: 4096 - len(start)]
        return Got(answer.status, answer.headers.get("x-hearth-job", ""), size, whole.hexdigest(), start)


async def send(speaker: Client, name: str, parts: Iterable[bytes], *, length: int | None = None) -> Got:
    async def flow() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return await call(speaker, name, flow(), content_type="application/octet-stream", length=length)


async def ask(speaker: Client, name: str, **event: object) -> Got:
    return await call(speaker, name, json.dumps(event).encode(), content_type="application/json")


async def stored(speaker: Client, job: str, part: str) -> tuple[int, str]:
    """Size and digest of a part in the folder store, once it is there."""
    path = speaker.platform.data / "store" / object_key.body("default", job, part)
    await speaker.until(path.exists, 300, f"{path} was not stored")
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def bodies_held(platform: Platform) -> int:
    """Messages in the broker's stream of large bodies, as the broker counts them."""
    port = json.loads((platform.data / "state" / "ports.json").read_text())["broker-1.monitor"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/jsz?acc=HEARTH&streams=true") as answer:
        accounts = json.load(answer)["account_details"]
    return next(
        stream["state"]["messages"] for one in accounts for stream in one["stream_detail"] if stream["name"] == "OBJECTS_BODIES"
    )


def test_the_broker_has_a_limit_to_its_memory(platform: Platform) -> None:
    """Without one it keeps what it read in ten seconds, which is as much as the disk is fast."""
    told = Path(f"/proc/{platform.pid('broker')}/environ").read_bytes().split(b"\0")
    assert b"GOMEMLIMIT=512MiB" in told


@pytest.mark.parametrize("size", SIZES)
async def test_a_large_input(speaker: Client, size: int) -> None:
    """Given a body of that size, then the function sees each byte, the store holds each byte, and nobody's memory grew by it."""
    await speaker.deploy("takes", TAKES, memory_mb=4096, timeout_s=600)
    await send(speaker, "takes", [b"warm"])
    sent = digest(pieces(size))
    peaks = Peaks(speaker.platform)
    got = await send(speaker, "takes", pieces(size), length=size)
    assert got.status == 200, got
    assert got.json == {"size": size, "sha256": sent}
    assert await stored(speaker, got.job, "input") == (size, sent)
    peaks.check(f"an input of {size // MIB} MiB")


@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "generator"])
@pytest.mark.parametrize("size", SIZES)
async def test_a_large_result(speaker: Client, size: int, streamed: bool) -> None:
    """Given a result of that size, then the caller and the store get each byte, and nobody's memory grew by it."""
    await speaker.deploy("gives", GIVES, memory_mb=4096, timeout_s=600)
    await ask(speaker, "gives", size=MIB, streamed=streamed)
    made = digest(pieces(size))
    peaks = Peaks(speaker.platform)
    got = await ask(speaker, "gives", size=size, streamed=streamed)
    assert (got.status, got.size, got.sha256) == (200, size, made), got
    assert await stored(speaker, got.job, "result") == (size, made)
    peaks.check(f"a result of {size // MIB} MiB")


async def test_a_large_call_of_the_async_lane_and_its_replay(speaker: Client) -> None:
    """Given a large body that may wait, then result and replay have each byte of it, and nobody's memory grew by it."""
    size = 64 * MIB
    await speaker.deploy("returns", RETURNS, memory_mb=1024, timeout_s=100)
    await send(speaker, "returns", [b"warm"])
    sent = digest(pieces(size))
    peaks = Peaks(speaker.platform)
    body = b"".join(pieces(size))
    headers = {"content-type": "application/octet-stream", "prefer": "respond-async"}
    answer = await speaker.call("POST", "/v1/functions/returns/invoke", data=io.BytesIO(body), headers=headers)
    assert answer.status == 202, answer
    replayed = await replay(speaker, answer.headers["x-hearth-job"])
    for job in (answer.headers["x-hearth-job"], replayed):
        state = await speaker.final(job)
        assert state["state"] == "SUCCESS", state
        assert (state["result"], state["result_ref"]["size"]) == (None, size)
        result = await speaker.call("GET", state["result_ref"]["href"])
        assert (result.status, len(result.body), hashlib.sha256(result.body).hexdigest()) == (200, size, sent)
        assert await stored(speaker, job, "input") == (size, sent)
        assert await stored(speaker, job, "result") == (size, sent)
    peaks.check(f"an async call of {size // MIB} MiB and its replay")


async def replay(speaker: Client, job: str) -> str:
    await speaker.final(job)
    again = await speaker.call("POST", f"/v1/jobs/{job}/replay")
    assert again.status == 202, again
    return again.json["job"]


async def test_a_reader_that_does_not_read_fills_nobodys_memory(speaker: Client) -> None:
    """Given a client that takes nothing of its large result for a while, then the rest waits in the broker, and is whole."""
    size = 96 * MIB
    await speaker.deploy("gives", GIVES, memory_mb=512, timeout_s=100)
    await ask(speaker, "gives", size=MIB)
    peaks = Peaks(speaker.platform)
    event = json.dumps({"size": size, "streamed": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", speaker.platform.port, limit=64 * 1024)
    writer.write(
        f"POST /v1/functions/gives/invoke HTTP/1.1\r\nHost: here\r\nx-api-key: {speaker.platform.key}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(event)}\r\n\r\n{event}".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    job = next(line.split(b": ")[1].decode() for line in head.split(b"\r\n") if line.lower().startswith(b"x-hearth-job"))
    assert (await stored(speaker, job, "result"))[0] == size
    peaks.check("a result that is not read")
    whole, got = hashlib.sha256(), 0
    while chunk := await reader.read(MIB):
        whole.update(chunk)
        got += len(chunk)
    writer.close()
    await writer.wait_closed()
    assert (got, whole.hexdigest()) == (size, digest(pieces(size)))
    peaks.check("the same, read at last")


async def test_large_bodies_over_the_fallback_link(tmp_path: Path) -> None:
    """Given the fast link forbidden, then a large body passes whole in both directions, and the executor's memory is flat."""
    size = 64 * MIB
    with started(tmp_path / "data", env={"HEARTH_SLOTS": "2", "HEARTH_LINK": "stdio"}) as platform:
        async with client(platform) as speaker:
            await speaker.deploy("returns", RETURNS, memory_mb=1024, timeout_s=100)
            await send(speaker, "returns", [b"warm"])
            peaks = Peaks(platform)
            got = await send(speaker, "returns", pieces(size), length=size)
            assert (got.status, got.size, got.sha256) == (200, size, digest(pieces(size))), got
            peaks.check(f"{size // MIB} MiB there and back over the fallback link")


async def test_a_body_announced_too_large_is_not_waited_for(speaker: Client) -> None:
    """Given a Content-Length of 1 GiB and one byte, then the answer is 413 though not a byte of it was sent."""
    await speaker.deploy("takes", TAKES)
    held = bodies_held(speaker.platform)
    peaks = Peaks(speaker.platform)
    with socket.create_connection(("127.0.0.1", speaker.platform.port), timeout=10) as raw:
        raw.sendall(
            f"POST /v1/functions/takes/invoke HTTP/1.1\r\nHost: here\r\nx-api-key: {speaker.platform.key}\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode()
        )
        answer = raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b"E_TOO_LARGE" in answer
    assert bodies_held(speaker.platform) == held
    peaks.check("a refused announcement")


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_body_that_turns_out_too_large(speaker: Client) -> None:
    """Given 1 GiB and one byte in chunks, announced by nothing, then the answer is 413 and the broker keeps none of it."""
    await speaker.deploy("takes", TAKES)
    held = bodies_held(speaker.platform)
    peaks = Peaks(speaker.platform)
    got = await send(speaker, "takes", itertools.chain(pieces(BODY_BYTES_MAX), [b"!"]))
    assert got.status == 413, got
    assert got.json["code"] == "E_TOO_LARGE"
    await speaker.until(lambda: bodies_held(speaker.platform) == held, 30, "chunks of a refused body stayed")
    peaks.check("a body past the limit")


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_result_that_turns_out_too_large(speaker: Client) -> None:
    """Given a result of 1 GiB and one byte, then the call has failed, says why, and the broker keeps none of it."""
    await speaker.deploy("gives", GIVES, memory_mb=4096, timeout_s=600)
    held = bodies_held(speaker.platform)
    peaks = Peaks(speaker.platform)
    got = await ask(speaker, "gives", size=BODY_BYTES_MAX, tail=1, streamed=True)
    assert got.status == 502, got
    assert got.json["code"] == "E_FUNCTION_BAD_RESULT"
    await speaker.until(lambda: bodies_held(speaker.platform) == held, 30, "chunks of a refused result stayed")
    peaks.check("a result past the limit")
