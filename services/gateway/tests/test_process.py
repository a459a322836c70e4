"""The gateway as the process that it is: with the permissions it will have, and as a call without HTTP."""

import asyncio
import contextlib
import json
import os
import signal
import sys

import aiohttp
import pytest
from eventually import until
from platform_double import SOURCE, Outcome, PlatformDouble, running

from hearth_contracts import permissions
from hearth_contracts.calls import Failure
from hearth_contracts.enums import Reason
from hearth_kit.nats_bus import connect
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker

pytestmark = pytest.mark.broker


def users() -> str:
    """The broker's configuration of two users: one that may everything, and the gateway as it is limited for real."""
    made = permissions.for_service("gateway", "gateway-1")
    listed = {
        "publish": list(made.publish), "subscribe": list(made.subscribe),
        **({"allow_responses": True} if made.responses else {}),
    }  # fmt: skip
    return f"""
authorization {{ users: [
  {{ user: boss, password: boss }}
  {{ user: gw, password: gw, permissions: {json.dumps(listed)} }}
] }}"""


@contextlib.asynccontextmanager
async def process(tmp_path):
    """Its address, its key, a boss's connection and the platform around it."""
    broker = Broker(tmp_path, extra=users())
    broker.start()
    try:
        async with connect(url=broker.url, instance="boss", user="boss", password="boss") as bus:
            await provision(bus)
            async with running(PlatformDouble(bus)) as double:
                credentials = tmp_path / "credentials"
                credentials.write_text('{"user":"gw","password":"gw"}')
                env = {
                    **os.environ, "HEARTH_NATS_URL": broker.url, "HEARTH_NATS_CREDENTIALS": str(credentials),
                    "HEARTH_HTTP_PORT": "0",
                    "HEARTH_INSTANCE": "gateway-1", "HEARTH_DATA_DIR": str(tmp_path / "data"), "HEARTH_DRAIN_S_MAX": "5",
                }  # fmt: skip
                child = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "hearth_gateway", env=env, stderr=asyncio.subprocess.PIPE, limit=1 << 20
                )
                lines: list[dict] = []
                reading = asyncio.ensure_future(_read(child, lines))
                try:
                    await until(lambda: any(line["event"] == "ready" for line in lines) or child.returncode is not None, 30)
                    assert child.returncode is None, lines
                    port = next(line["port"] for line in lines if line["event"] == "listening")
                    key = (tmp_path / "data" / "admin-key").read_text().strip()
                    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"x-api-key": key}) as http:
                        yield http, bus, double, child, lines
                finally:
                    if child.returncode is None:
                        child.kill()
                    await child.wait()
                    await reading
    finally:
        broker.stop()


async def _read(child, lines) -> None:
    async for line in child.stderr:
        lines.append(json.loads(line))


async def test_it_serves_with_limited_permissions_and_drains_on_sigterm(tmp_path):
    async with process(tmp_path) as (http, _, double, child, lines):
        async with http.put("/v1/functions/hello", json={"spec": {}, "source": SOURCE}) as response:
            assert response.status == 201, await response.text()
        await until(lambda: _status(http, "POST", "/v1/functions/hello/invoke", 200, data=b"{}"))
        headers = {"prefer": "respond-async", "idempotency-key": "k"}
        async with http.post("/v1/functions/hello/invoke", data=b"[1]", headers=headers) as response:
            job = (await response.json())["job"]
        async with http.get(f"/v1/jobs/{job}?wait=10") as response:
            assert (await response.json())["state"] == "SUCCESS"
        async with http.post("/v1/functions/hello/invoke", data=os.urandom(700_000), headers={"content-type": "x/y"}) as response:
            assert response.status == 200
            assert len(await response.read()) == 700_000
        for path in ("events", "logs", "trace", "outputs", "result"):
            async with http.get(f"/v1/jobs/{job}/{path}") as response:
                assert response.status == 200, path
        async with http.post(f"/v1/jobs/{job}/replay") as response:
            assert response.status == 202
        double.placed = False
        async with http.post("/v1/functions/hello/invoke", data=b"[2]", headers={"prefer": "respond-async"}) as response:
            waiting = (await response.json())["job"]
        async with http.delete(f"/v1/jobs/{waiting}") as response:
            assert response.status == 200, await response.text()
        double.placed = True
        async with http.post("/v1/keys", json={"tenant": "team"}) as response:
            assert response.status == 201
        async with http.post("/v1/events/a.b", json={}) as response:
            assert response.status == 202
        async with http.get("/readyz") as response:
            assert response.status == 200, await response.text()
        async with http.get("/v1/system") as response:
            system = await response.json()
            assert {stream["state"] for stream in system["streams"]} == {"ok"}
        async with http.delete("/v1/functions/hello") as response:
            assert response.status == 204
        refused = [line for line in lines if "ermission" in line["event"]]
        assert not refused, refused

        # It drains: the call that runs is answered, then it ends.
        go = asyncio.Event()

        async def work(call, body):
            await go.wait()
            return Outcome(b'"last"')

        double.work = work
        async with http.put("/v1/functions/hello", json={"spec": {}, "source": SOURCE}) as response:
            assert response.status == 201
        before = len(double.calls)
        last = asyncio.ensure_future(_body(http))
        await until(lambda: len(double.calls) > before)
        child.send_signal(signal.SIGTERM)
        await until(lambda: _refused_connection(http))
        go.set()
        assert await last == "last"
        assert await asyncio.wait_for(child.wait(), 15) == 0


async def _status(http, method, path, wanted, **options) -> bool:
    async with http.request(method, path, **options) as response:
        return response.status == wanted


async def _body(http):
    async with http.post("/v1/functions/hello/invoke", data=b"{}") as response:
        return json.loads(await response.read())


async def _refused_connection(http) -> bool:
    try:
        async with http.get("/healthz", headers={"connection": "close"}) as response:
            return response.status != 200
    except aiohttp.ClientError:
        return True


@pytest.mark.parametrize("mib", [128, pytest.param(1024, marks=pytest.mark.long)])
async def test_its_memory_does_not_depend_on_the_size_of_a_body(tmp_path, mib):
    """In and out again; the budget is 32 MiB (DESIGN section 10)."""
    chunk = b"x" * (1 << 20)

    async def sent(count):
        for _ in range(count):
            yield chunk

    async with process(tmp_path) as (http, _, _, child, _):
        async with http.put("/v1/functions/hello", json={"spec": {}, "source": SOURCE}) as response:
            assert response.status == 201
        await until(lambda: _status(http, "POST", "/v1/functions/hello/invoke", 200, data=b"{}"))
        for count in (4, mib):  # what is made once is made
            before_kib = peak_kib(child.pid)
            async with http.post("/v1/functions/hello/invoke", data=sent(count), headers={"content-type": "x/y"}) as response:
                assert response.status == 200
                got = 0
                async for part in response.content.iter_chunked(1 << 18):
                    got += len(part)
            assert got == count << 20
        assert peak_kib(child.pid) - before_kib < 32 * 1024


def peak_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


async def test_a_setting_that_is_wrong_is_named(tmp_path):
    env = {**os.environ, "HEARTH_HTTP_PORT": "99999", "HEARTH_TENANT": "A B"}
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "hearth_gateway", env=env, stderr=asyncio.subprocess.PIPE)
    _, err = await child.communicate()
    assert child.returncode == 2
    assert b"HEARTH_HTTP_PORT" in err
    assert b"HEARTH_TENANT" in err


async def test_a_call_by_request_and_reply(gateway):
    await gateway.deploy()
    answer = await gateway.bus.request("hearth.v1.invoke.default.hello", b'{"name":"ada"}')
    assert json.loads(answer.body) == {"name": "ada"}
    assert answer.headers["Hearth-Status"] == "200"
    assert answer.headers["Hearth-Job"].startswith("hello-")
    assert answer.headers["Hearth-Start"] == "warm"
    answer = await gateway.bus.request("hearth.v1.invoke.default.nothing", b"")
    problem = json.loads(answer.body)
    assert (answer.headers["Hearth-Status"], problem["code"]) == ("404", "E_FUNCTION_NOT_FOUND")
    answer = await gateway.bus.request("hearth.v1.invoke.other.hello", b"")
    assert answer.headers["Hearth-Status"] == "404"
    answer = await gateway.bus.request("hearth.v1.invoke.default.hello", b"x" * 300_000)
    assert (answer.headers["Hearth-Status"], json.loads(answer.body)["code"]) == ("413", "E_TOO_LARGE")

    async def fail(call, body):
        return Outcome(reason=Reason.ERROR, failure=Failure(message="no"))

    gateway.double.work = fail
    answer = await gateway.bus.request("hearth.v1.invoke.default.hello", b"")
    assert (answer.headers["Hearth-Status"], json.loads(answer.body)["code"]) == ("502", "E_FUNCTION_ERROR")


async def test_an_answer_never_goes_where_the_asker_may_not_publish(gateway, eventually):
    await gateway.deploy()
    gateway.bus.send("hearth.v1.invoke.default.hello", b"{}", reply="hearth.v1.events.other.forged")
    answer = await gateway.bus.request("hearth.v1.invoke.default.hello", b"{}")
    assert answer.headers["Hearth-Status"] == "200"
    assert (await gateway.bus.stream_info("EVENTS")).messages == 0
    assert len(gateway.double.calls) == 1


async def test_a_plain_publish_is_an_async_job(gateway, eventually):
    await gateway.deploy()
    gateway.bus.send("hearth.v1.invoke.default.hello", b"{}")
    await eventually(lambda: gateway.double.calls)
    assert gateway.double.calls[0].lane == "async"
