"""Keys, rates, what is open, what the platform shows."""

import asyncio
import json
import os
import time

import pytest
from platform_double import headers_of

from hearth_contracts import streams, subjects
from hearth_contracts.fleet import Presence

pytestmark = pytest.mark.broker

OPEN = {"/healthz", "/readyz", "/docs", "/openapi.json", "/", "/metrics", "/v1/schemas/function.json"}


async def test_no_route_is_open_without_a_key(gateway):
    _, document, _ = await gateway.call("GET", "/openapi.json", key="-")
    for path, operations in document["paths"].items():
        address = path.replace("{job}", "hello-" + "0" * 26).replace("{name}", "hello")
        address = address.replace("{prefix}", "hk_1").replace("{subject}", "a.b").replace("{path}", "x")
        for method in operations:
            for key in ("-", "wrong", "hk_00000000_" + "x" * 40):
                status, body, headers = await gateway.call(method.upper(), address, key=key)
                if path in OPEN:
                    assert status == 200, path
                else:
                    assert (status, body["code"]) == (401, "E_UNAUTHORIZED"), f"{method} {path}"
                    assert "bearer" in headers["www-authenticate"].lower()


async def test_the_admin_key_file_is_private_and_kept(gateway, broker, bus, make_gateway, tmp_path):
    path = gateway.settings.admin_key_path
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert len(gateway.key) >= 40
    async with make_gateway(broker, bus, tmp_path, instance="gateway-2") as second:
        assert second.key == gateway.key
        assert (await second.call("GET", "/v1/functions"))[0] == 200


async def test_a_bearer_token_is_as_good(gateway):
    async with gateway.http.get(f"{gateway.url}/v1/functions", headers={"authorization": f"Bearer {gateway.key}"}) as response:
        assert response.status == 200
    async with gateway.http.get(f"{gateway.url}/v1/functions", headers={"authorization": f"Basic {gateway.key}"}) as response:
        assert response.status == 401


async def test_a_key_is_told_once_and_kept_hashed(gateway):
    status, made, headers = await gateway.call("POST", "/v1/keys", json={"name": "ci", "tenant": "team-a"})
    assert status == 201
    assert headers["cache-control"] == "no-store"
    assert made["key"].startswith(made["prefix"])
    _, listed, _ = await gateway.call("GET", "/v1/keys")
    assert made["prefix"] in {key["prefix"] for key in listed["keys"]}
    assert made["key"] not in json.dumps(listed)
    await gateway.deploy(key=made["key"])
    await gateway.invoke(key=made["key"])
    # Nothing on the broker holds a usable key.
    for stream in streams.STREAMS:
        info = await gateway.bus.stream_info(stream.name)
        for sequence in range(info.first_sequence, info.last_sequence + 1):
            stored = await gateway.bus.get_at(stream.name, sequence)
            if stored is not None:
                text = stored.subject + str(stored.message.headers) + stored.message.body.decode("utf-8", "replace")
                assert made["key"] not in text
                assert gateway.key not in text


async def test_no_key_is_in_the_logs_nor_in_what_is_measured(broker, bus, make_gateway, tmp_path, capfd):
    """Whatever is done with it: made, used, refused, revoked, and sent where it does not belong."""
    async with make_gateway(broker, bus, tmp_path, log_level="DEBUG") as gateway:
        _, made, _ = await gateway.call("POST", "/v1/keys", json={"tenant": "team-a"})
        secret = made["key"]
        await gateway.deploy(key=secret)
        await gateway.invoke(key=secret)
        await gateway.call("GET", f"/v1/functions/{secret}", key=secret)
        await gateway.call("GET", "/v1/functions", key="-", headers={"authorization": f"Basic {secret}"})
        assert (await gateway.call("DELETE", f"/v1/keys/{made['prefix']}"))[0] == 204
        assert (await gateway.invoke(key=secret))[0] == 401
        _, measured, _ = await gateway.call("GET", "/metrics", key="-")
        assert b"hearth_gateway_requests_total" in measured
    logged = "".join(capfd.readouterr())
    assert "ready" in logged  # the log is what was captured
    for text in (logged, measured.decode()):
        for key in (secret, gateway.key):
            assert key not in text
            assert key[len(made["prefix"]) :] not in text


async def test_keys_are_for_admins(gateway):
    key = await gateway.tenant_key("team-a")
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/hk_1")):
        status, body, _ = await gateway.call(method, path, key=key)
        assert (status, body["code"]) == (403, "E_FORBIDDEN")
    for wrong in ({"tenant": "A B"}, {"nope": 1}, {"rate_per_s": -1}, [], {"admin": "perhaps"}):
        status, body, _ = await gateway.call("POST", "/v1/keys", json=wrong)
        assert (status, body["code"]) == (422, "E_INVALID_INPUT"), wrong
        assert body["errors"]
    assert (await gateway.call("DELETE", "/v1/keys/hk_none"))[0] == 404


async def test_a_revoked_key_is_dead_on_every_gateway(gateway, broker, bus, make_gateway, tmp_path, eventually):
    async with make_gateway(broker, bus, tmp_path, instance="gateway-2") as second:
        _, made, _ = await gateway.call("POST", "/v1/keys", json={"tenant": "team-a"})

        async def works():
            return (await second.call("GET", "/v1/functions", key=made["key"]))[0] == 200

        await eventually(works, 5)
        assert (await gateway.call("DELETE", f"/v1/keys/{made['prefix']}"))[0] == 204
        assert (await gateway.call("GET", "/v1/functions", key=made["key"]))[0] == 401

        async def dead():
            return (await second.call("GET", "/v1/functions", key=made["key"]))[0] == 401

        await eventually(dead, 5)


async def test_a_key_cannot_revoke_itself(gateway):
    _, listed, _ = await gateway.call("GET", "/v1/keys")
    own = next(key["prefix"] for key in listed["keys"] if gateway.key.startswith(key["prefix"]))
    status, body, _ = await gateway.call("DELETE", f"/v1/keys/{own}")
    assert (status, body["code"]) == (409, "E_KEY_IN_USE")


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(gateway):
    key = await gateway.tenant_key("team-a", rate_per_s=0.5, burst=3)
    statuses = [(await gateway.call("GET", "/v1/functions", key=key))[0] for _ in range(3)]
    assert statuses == [200, 200, 200]
    status, body, headers = await gateway.call("GET", "/v1/functions", key=key)
    assert (status, body["code"]) == (429, "E_RATE_LIMITED")
    assert headers["retry-after"] in ("1", "2")
    assert (await gateway.call("GET", "/v1/functions"))[0] == 200


async def test_the_system_is_whole_and_shows_what_is_gone(gateway, eventually):
    for _ in range(2):
        said = Presence(service="persister", instance="persister-1", pid=7, started_at=1, at=1)
        gateway.bus.send(subjects.presence("persister", "persister-1"), headers={"Hearth-Meta": said.model_dump_json()})

    async def processes():
        _, body, _ = await gateway.call("GET", "/v1/system")
        return {(p["service"], p["state"]) for p in body["processes"]}

    await eventually(lambda: _has(processes, ("persister", "ready")))
    await eventually(lambda: _has(processes, ("persister", "gone")), 4)
    for service in ("scheduler", "gateway"):
        await eventually(lambda service=service: _has(processes, (service, "ready")))
    _, body, _ = await gateway.call("GET", "/v1/system")
    executor = body["executors"][0]
    assert executor["pools"] == {
        "assigned": {"default.hello.1": 2},
        "warm": {"default.hello.1": 2, "other.secret.1": 1},
        "generic": {"python/128": 3},
    }
    assert {stream["name"] for stream in body["streams"]} == {stream.name for stream in streams.STREAMS}
    assert body["broker"]["connected"] is True
    # A tenant sees of functions only its own.
    key = await gateway.tenant_key("team-a")
    _, body, _ = await gateway.call("GET", "/v1/system", key=key)
    assert "other.secret" not in json.dumps(body)
    assert "default.hello" not in json.dumps(body)


async def _has(processes, wanted):
    return wanted in await processes()


async def test_readiness_names_the_stream_that_is_missing_and_its_fix(own_broker, make_gateway, tmp_path, eventually):
    from hearth_kit.nats_bus import connect
    from hearth_kit.provision import provision

    async with connect(url=own_broker.url, instance="test") as bus:
        await provision(bus)
        async with make_gateway(own_broker, bus, tmp_path / "g", streams_check_s=0.1) as gateway:
            await bus._api_call("STREAM.DELETE.DEAD")

            async def said():
                status, body, _ = await gateway.call("GET", "/readyz", key="-")
                return status == 503 and "doctor --fix" in body["problems"].get("DEAD", "")

            await eventually(said)
            assert (await gateway.call("GET", "/healthz", key="-"))[0] == 200


async def test_pages_and_documents(gateway):
    for path in ("/", "/docs"):
        status, raw, headers = await gateway.call("GET", path, key="-")
        assert status == 200
        assert headers["content-type"].startswith("text/html")
        text = raw.decode()
        assert "<script" not in text
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text
    _, document, _ = await gateway.call("GET", "/openapi.json", key="-")
    assert document["openapi"] == "3.1.0"
    assert {"/v1/functions/{name}/invoke", "/fn/{name}/{path}", "/v1/jobs/{job}", "/v1/keys", "/v1/system"} <= set(
        document["paths"]
    )
    status, raw, _ = await gateway.call("GET", "/metrics", key="-")
    assert status == 200
    assert b"hearth_gateway_requests_total" in raw


async def test_what_is_not_there_is_a_problem_too(gateway):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("POST", "/healthz", 405),
        ("GET", "/v1/functions/", 404),
        ("BREW", "/", 400),
    ):
        got, body, headers = await gateway.call(method, path)
        assert got == status, (method, path)
        assert headers["content-type"] == "application/problem+json"
        assert body["code"].startswith("E_")


async def test_an_event_is_published_for_the_callers_tenant(gateway):
    status, body, _ = await gateway.call("POST", "/v1/events/camera.1.motion", json={"a": 1})
    assert status == 202
    stored = await gateway.bus.get_at("EVENTS", body["sequence"])
    assert stored.subject == "hearth.v1.events.default.camera.1.motion"
    assert json.loads(stored.message.body) == {"a": 1}
    for wrong in ("a..b", "*", "a.>", "a%20b", "x" * 200, ".".join("a" * 20)):
        status, body, _ = await gateway.call("POST", f"/v1/events/{wrong}", json={})
        assert (status, body["code"]) == (422, "E_INVALID_NAME"), wrong
    assert (await gateway.call("POST", "/v1/events/a", data=b"x" * 600_000))[0] == 413


async def test_no_model_server_is_said_clearly(gateway):
    for method, path in (("POST", "/v1/chat/completions"), ("POST", "/api/chat"), ("GET", "/api/tags")):
        status, body, headers = await gateway.call(method, path, **({"json": {"model": "m"}} if method == "POST" else {}))
        assert (status, body["code"]) == (503, "E_NO_MODEL_SERVER")
        assert headers["retry-after"]


async def test_a_fleet_without_an_engine_means_503_at_once(broker, bus, make_gateway, tmp_path, eventually):
    """An executor that lives but has nothing to run functions in does not count: the caller hears so, instead of waiting."""
    async with make_gateway(broker, bus, tmp_path, silent_s_max=0.5) as gateway:
        await gateway.deploy()
        gateway.double.backends = ()

        async def refused():
            status, body, headers = await gateway.invoke()
            return status == 503 and body["code"] == "E_NO_CAPACITY" and "engine" in body["detail"] and headers["retry-after"]

        await eventually(refused)


async def test_labels_that_no_executor_carries_mean_503_at_once(gateway):
    """A sync call would wait for a machine that is not there; an async job may wait until there is one."""
    await gateway.deploy(placement={"zone": "edge"})
    status, body, headers = await gateway.invoke()
    assert (status, body["code"]) == (503, "E_NO_CAPACITY")
    assert "zone: edge" in body["detail"]
    assert headers["retry-after"]
    status, _, _ = await gateway.invoke(headers={"prefer": "respond-async"})
    assert status == 202


async def test_nothing_alive_means_503_at_once(broker, bus, make_gateway, tmp_path, eventually):
    async with make_gateway(broker, bus, tmp_path, silent_s_max=0.5) as gateway:
        await gateway.deploy()
        gateway.double.said = lambda: None  # neither executor nor scheduler is heard any more

        async def refused():
            status, body, headers = await gateway.invoke()
            return status == 503 and body["code"] == "E_NO_CAPACITY" and headers["retry-after"]

        await eventually(refused)
        # An async job may wait for capacity: the broker has it.
        assert (await gateway.invoke(headers={"prefer": "respond-async"}))[0] == 202
        await asyncio.sleep(0)


async def test_a_store_that_takes_nothing_is_a_problem_and_no_reason_to_turn_callers_away(gateway):
    def say(instance, **stores):
        notes = {f"store.{name}": state for name, state in stores.items()}
        said = Presence(service="persister", instance=instance, pid=1, started_at=0, at=time.time(), notes=notes)
        gateway.bus.send(subjects.presence("persister", instance), headers=headers_of(said, "presence.v1"))

    async def told(wanted):
        for _ in range(100):
            say("p-1", local="degraded since 1000: no space left", s3="degraded since 900: away")
            say("p-2", local="standing by", s3="writing")
            _, body, _ = await gateway.call("GET", "/v1/system")
            if wanted(body["problems"]):
                return body["problems"]
            await asyncio.sleep(0.05)
        raise AssertionError(body["problems"])

    problems = await told(lambda problems: "store.local" in problems)
    assert problems["store.local"].startswith("degraded since 1000: no space left; make room")
    await told(lambda problems: set(problems) == {"store.local"})  # the other is written to by somebody
    status, body, _ = await gateway.call("GET", "/readyz")
    assert (status, body["problems"]) == (200, {})
    assert "store.local" in body["warnings"]
