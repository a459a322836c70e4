"""Bodies that lie about their size, that never end, or that would grow when unpacked: refused before they are held, at every
route that takes one. Real sockets, byte by byte."""

import asyncio
import contextlib
import gc
import gzip
import resource

import pytest

pytestmark = pytest.mark.broker

#: Every route that reads a body, by how a client would name it.
ROUTES = (
    b"POST /v1/functions/hello/invoke", b"PUT /v1/functions/hello", b"POST /fn/hello/any", b"POST /v1/events/a.b",
    b"POST /v1/keys", b"POST /v1/chat/completions", b"POST /api/chat",
)  # fmt: skip
TYPES = {b"PUT /v1/functions/hello": (b"application/json", b"multipart/form-data; boundary=x")}

#: What the whole process, client and broker's double included, may grow by while it refuses.
GROWTH_KIB_MAX = 32 * 1024


def rss_kib() -> int:
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.asynccontextmanager
async def opened(gateway, route: bytes, *head: bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(b"\r\n".join((route + b" HTTP/1.1", b"host: x", b"x-api-key: " + gateway.key.encode(), *head, b"", b"")))
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def status_of(reader) -> int:
    """0 when the connection just ended."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    return int(head.split()[1])


@pytest.mark.parametrize("route", ROUTES)
async def test_ten_gibibytes_announced_are_refused_at_the_head(gateway, route):
    await gateway.deploy()
    before = rss_kib()
    for kind in TYPES.get(route, (b"application/json",)):
        async with opened(gateway, route, b"content-length: 10737418240", b"content-type: " + kind) as (reader, _):
            assert await status_of(reader) == 413  # not a byte of the body was sent
    assert rss_kib() - before < GROWTH_KIB_MAX


@pytest.mark.parametrize("route", ROUTES)
async def test_chunks_without_end_are_cut_off_in_flat_memory(gateway, route, monkeypatch):
    from hearth_gateway.calls import bodies

    monkeypatch.setattr(bodies, "BODY_BYTES_MAX", 4 << 20)
    await gateway.deploy()
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    for kind in TYPES.get(route, (b"application/json",)):
        before = rss_kib()
        async with opened(gateway, route, b"transfer-encoding: chunked", b"content-type: " + kind) as (_, writer):
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 256 << 20:
                    writer.write(chunk)
                    await asyncio.wait_for(writer.drain(), 10)
                    sent += 65536
            assert sent < 256 << 20, "nobody ended it"
        assert rss_kib() - before < GROWTH_KIB_MAX
    assert (await gateway.call("GET", "/healthz"))[0] == 200


async def test_a_body_that_says_it_is_packed_is_never_unpacked_here(gateway):
    """Refused, but where the bytes are somebody else's to read: a function's own endpoint, and events."""
    await gateway.deploy()
    bomb = gzip.compress(bytes(64 << 20))
    before = rss_kib()
    for route in ROUTES:
        method, path = route.decode().split()
        status, body, _ = await gateway.call(method, path, data=bomb, headers={"content-encoding": "gzip"})
        taken = path.startswith(("/fn/", "/v1/events/"))
        assert status in (200, 202) if taken else 400 <= status < 500 or body["code"] == "E_NO_MODEL_SERVER", (path, body)
    # Bytes like any others: 64 MiB of zeros stay 64 KiB.
    assert [call.input.size for call in gateway.double.calls] == [len(bomb)]
    assert rss_kib() - before < GROWTH_KIB_MAX


async def test_a_length_that_is_wrong_runs_nothing(gateway):
    await gateway.deploy()
    calls = len(gateway.double.calls)
    for length in (b"6", b"9" * 30, b"-1", b"1e3", b"0x5", b"5, 5", b"5 5", b""):
        async with opened(gateway, ROUTES[0], b"content-length: " + length) as (reader, writer):
            writer.write(b"12345")
            writer.write_eof()  # shorter than announced, or not a length at all
            assert await status_of(reader) in (0, 400, 408, 411, 413), length
    assert len(gateway.double.calls) == calls
    # Longer than announced: the rest is the next request, and none that is understood; the connection ends.
    async with opened(gateway, ROUTES[0], b"content-length: 2") as (reader, writer):
        writer.write(b"{}and more")
        assert await status_of(reader) in (200, 400)
        await asyncio.wait_for(reader.read(), 10)
    assert len(gateway.double.calls) <= calls + 1
