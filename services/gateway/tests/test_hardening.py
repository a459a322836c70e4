"""Hostile and slow clients: closed in time, and nobody else notices. Real sockets, byte by byte."""

import asyncio
import contextlib
import gc
import resource
import time

import pytest

pytestmark = pytest.mark.broker

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


class Raw:
    """A connection that says exactly what it is told to say."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def answer(self, timeout_s: float = 10) -> tuple[int, bytes]:
        """Status and body of the next answer; (0, b"") when the connection just ended."""
        try:
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), timeout_s)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        body = await self.reader.readexactly(int(fields.get(b"content-length", b"0")))
        return int(head.split()[1]), body

    async def ended(self, timeout_s: float = 10) -> None:
        with contextlib.suppress(ConnectionError):
            while await asyncio.wait_for(self.reader.read(65536), timeout_s):
                pass


@contextlib.asynccontextmanager
async def raw(gateway):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(gateway, head: bytes, body: bytes = b"") -> bytes:
    return (
        b"POST /v1/functions/hello/invoke HTTP/1.1\r\nhost: x\r\nx-api-key: "
        + gateway.key.encode()
        + b"\r\n"
        + head
        + b"\r\n"
        + body
    )


@pytest.fixture
async def strict(broker, bus, make_gateway, tmp_path):
    """Short times, so that the tests are."""
    async with make_gateway(
        broker, bus, tmp_path, header_s_max=1, body_stall_s_max=1, write_stall_s_max=1, keep_alive_s=2, connections_max=600
    ) as made:
        await made.deploy()
        yield made


async def test_keep_alive_and_pipelining(gateway):
    async with raw(gateway) as connection:
        connection.writer.write(HEALTH * 3)
        for _ in range(3):
            assert (await connection.answer())[0] == 200
        connection.writer.write(HEALTH)
        assert (await connection.answer())[0] == 200


UPGRADES = (
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEA\r\n",
    b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
)
JSON = b"content-type: application/json\r\n"
FRAMED = (
    (b"content-length: 7\r\n", b'{"x":1}'),
    (b"transfer-encoding: chunked\r\n", b'3\r\n{"x\r\n4\r\n":1}\r\n0\r\n\r\n'),
)


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize(("framing", "body"), FRAMED)
async def test_a_request_that_offers_an_upgrade_keeps_its_body(gateway, upgrade, framing, body):
    """RFC 9110, 7.8: a server may ignore the offer; whatever segments it comes in, and whatever follows."""
    await gateway.deploy()
    asked = post(gateway, upgrade + framing + JSON, body)
    head = len(asked) - len(body)
    async with raw(gateway) as connection:
        for cuts in ((), (head,), (head - 1,), (head + 1, head + 4), (20, head - 3, head + 2, len(asked) - 1)):
            for start, end in zip((0, *cuts), (*cuts, len(asked)), strict=True):
                connection.writer.write(asked[start:end])
                await connection.writer.drain()
                await asyncio.sleep(0.02)  # a segment of its own
            assert await connection.answer() == (200, b'{"x":1}'), cuts
        connection.writer.write(asked + HEALTH + asked + asked + HEALTH)  # pipelined
        for expected in (b'{"x":1}', b'{"status":"ok"}', b'{"x":1}', b'{"x":1}', b'{"status":"ok"}'):
            assert await connection.answer() == (200, expected)


async def test_a_body_cut_short_after_an_upgrade_waits_for_its_rest(strict):
    async with raw(strict) as connection:
        connection.writer.write(post(strict, UPGRADES[0] + FRAMED[0][0] + JSON, b'{"x'))
        assert (await connection.answer())[0] == 408


@pytest.mark.parametrize("upgrade", UPGRADES)
async def test_an_upgrade_without_a_body_is_an_ordinary_request(gateway, upgrade):
    asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + upgrade + b"\r\n"
    async with raw(gateway) as connection:
        connection.writer.write(asked + HEALTH + asked)
        for _ in range(3):
            assert await connection.answer() == (200, b'{"status":"ok"}')


async def test_an_upgrade_whose_body_has_no_end_that_can_be_told_is_refused(gateway):
    for framing in (b"transfer-encoding: gzip\r\n", b"transfer-encoding: chunked\r\ncontent-length: 3\r\n"):
        async with raw(gateway) as connection:
            connection.writer.write(post(gateway, UPGRADES[0] + framing, b"abc" + HEALTH))
            assert (await connection.answer())[0] == 400, framing
            assert await connection.answer() == (0, b"")


async def test_a_tunnel_is_not_offered_and_what_is_sent_into_it_is_no_request(gateway):
    async with raw(gateway) as connection:
        connection.writer.write(b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n" + HEALTH)
        assert (await connection.answer())[0] in (400, 404, 405)
        connection.writer.write_eof()
        assert await connection.answer() == (0, b"")


async def test_what_is_no_http_is_a_400_problem(gateway):
    for nonsense in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x00" * 100,
    ):
        async with raw(gateway) as connection:
            connection.writer.write(nonsense)
            status, body = await connection.answer()
            assert status == 400, nonsense
            assert b"E_BAD_REQUEST" in body
            await connection.ended()


async def test_smuggling_shapes_are_refused(gateway):
    await gateway.deploy()
    for head in (
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 4\r\ncontent-length: 5\r\n",
        b"transfer-encoding: xchunked, chunked, identity\r\n",
        b"content-length: +4\r\n",
        b"content-length: 0x4\r\n",
        b"content-length : 4\r\n",
    ):
        async with raw(gateway) as connection:
            connection.writer.write(post(gateway, head, b"0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"))
            status, _ = await connection.answer()
            assert status in (400, 413, 0), head
            assert (await connection.answer())[0] in (0, 400), head


async def test_a_head_that_is_too_large(gateway):
    async with raw(gateway) as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\n" + b"x-a: " + b"y" * 100_000 + b"\r\n\r\n")
        status, body = await connection.answer()
        assert (status, b"E_HEADERS_TOO_LARGE" in body) == (431, True)
    async with raw(gateway) as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(500)) + b"\r\n")
        assert (await connection.answer())[0] == 431
    async with raw(gateway) as connection:
        for _ in range(200):  # a head without end
            connection.writer.write(b"x" * 1000)
            await asyncio.sleep(0)
        assert (await connection.answer())[0] in (400, 431, 0)


async def test_slow_heads_and_bodies_are_closed_and_healthy_clients_do_not_notice(strict):
    async def healthy() -> list[float]:
        times = []
        for _ in range(100):
            started = time.perf_counter()
            assert (await strict.call("GET", "/healthz"))[0] == 200
            times.append(time.perf_counter() - started)
        return sorted(times)

    before = await healthy()
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(raw(strict)) for _ in range(250)]
        for connection in slow:
            connection.writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-a: ")
        stalled = [await stack.enter_async_context(raw(strict)) for _ in range(250)]
        for connection in stalled:
            connection.writer.write(post(strict, b"content-length: 100\r\n", b"half"))
        during = await healthy()
        assert during[50] < max(2 * before[50], before[50] + 0.02)
        answers = await asyncio.gather(*(connection.answer(15) for connection in slow + stalled))
        assert {status for status, _ in answers} == {408}
        assert all(b"E_TOO_SLOW" in body for _, body in answers)


async def test_a_body_that_trickles_is_taken(strict):
    async with raw(strict) as connection:
        connection.writer.write(post(strict, b"content-length: 20\r\n"))
        for _ in range(20):
            connection.writer.write(b"1")
            await asyncio.sleep(0.1)
        assert await connection.answer() == (200, b"1" * 20)


async def test_an_open_connection_that_says_nothing_is_closed(strict):
    async with raw(strict) as connection:
        await connection.ended(5)


async def test_a_reader_that_reads_nothing_is_cut(strict):
    data = b"x" * (16 << 20)
    await strict.double.object("big", data)

    async def work(call, body):
        from platform_double import Outcome

        return Outcome(object="big", size=len(data), content_type="text/plain")

    strict.double.work = work
    reader, writer = await asyncio.open_connection("127.0.0.1", strict.port, limit=1024)
    writer.write(post(strict, b"content-length: 0\r\n"))
    await asyncio.sleep(4)  # longer than a reader may stand still
    got = 0
    with contextlib.suppress(ConnectionError):
        while part := await asyncio.wait_for(reader.read(1 << 20), 10):
            got += len(part)
    assert got < len(data)
    writer.close()


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(gateway):
    await gateway.deploy()
    async with raw(gateway) as connection:
        connection.writer.write(post(gateway, b"content-length: 10737418240\r\nexpect: 100-continue\r\n"))
        status, body = await connection.answer()
        assert (status, b"E_TOO_LARGE" in body) == (413, True)


async def test_chunks_without_end_are_cut_off(gateway, monkeypatch):
    from hearth_gateway.calls import bodies

    monkeypatch.setattr(bodies, "BODY_BYTES_MAX", 4 << 20)
    await gateway.deploy()
    async with raw(gateway) as connection:
        connection.writer.write(post(gateway, b"transfer-encoding: chunked\r\n"))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 << 20:
                connection.writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await connection.writer.drain()
                sent += 65536
        assert sent < 64 << 20  # the connection was ended under it
    assert (await gateway.call("GET", "/healthz"))[0] == 200
    info = await gateway.bus.stream_info("OBJECTS_BODIES")
    assert info.messages == 0  # what was stored by then is gone


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(gateway, eventually):
    await gateway.deploy()
    async with raw(gateway) as connection:
        connection.writer.write(post(gateway, b"content-length: 5000000\r\n", b"x" * 1_500_000))
        await connection.writer.drain()
    assert not gateway.double.calls

    async def gone():
        return (await gateway.bus.stream_info("OBJECTS_BODIES")).messages == 0

    await eventually(gone)


async def test_more_connections_than_allowed_are_told_so(broker, bus, make_gateway, tmp_path):
    async with make_gateway(broker, bus, tmp_path, connections_max=20) as gateway, contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(raw(gateway))
        async with raw(gateway) as one_more:
            status, body = await one_more.answer()
            assert (status, b"E_OVERLOADED" in body) == (503, True)


async def test_large_bodies_pass_in_flat_memory(gateway):
    """64 MiB in and out; what it takes must not depend on the size."""
    await gateway.deploy()
    chunk, count = b"x" * (1 << 20), 64

    async def sent():
        for _ in range(count):
            yield chunk

    await gateway.invoke(data=_repeat(chunk, 4), headers={"content-type": "text/plain"})  # what is made once is made
    gc.collect()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    url = f"{gateway.url}/v1/functions/hello/invoke"
    async with gateway.http.post(url, data=sent(), headers=gateway.headers(**{"content-type": "text/plain"})) as response:
        assert response.status == 200
        got = 0
        async for part in response.content.iter_chunked(1 << 18):
            got += len(part)
    assert got == count << 20
    # Client, double and gateway share this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024


async def _repeat(chunk, count):
    for _ in range(count):
        yield chunk


async def test_a_refusal_is_cheap_under_load(gateway, eventually):
    """200 clients against a full queue, from this process too: the limit is generous because of it."""
    await gateway.deploy(queue={"depth": 1})
    gateway.double.waiting = {"default.hello": 1}

    async def refused():
        return (await gateway.invoke())[0] == 429

    await eventually(refused)
    times: list[float] = []

    async def client():
        async with raw(gateway) as connection:
            for _ in range(10):
                started = time.perf_counter()
                connection.writer.write(post(gateway, b"content-length: 2\r\n", b"{}"))
                assert (await connection.answer())[0] == 429
                times.append(time.perf_counter() - started)
                await asyncio.sleep(0.05)

    await asyncio.gather(*(client() for _ in range(200)))
    assert sorted(times)[int(len(times) * 0.5)] < 0.25
