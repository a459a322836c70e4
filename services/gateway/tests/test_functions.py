"""The registry: versions, races, deleting, and what a caller sees right after."""

import asyncio

import pytest
from platform_double import SOURCE

pytestmark = pytest.mark.broker


async def test_a_function_from_first_to_last(gateway):
    first = await gateway.deploy()
    assert {"name", "version", "digest", "state", "runtime", "backend"} <= set(first)
    assert (first["version"], first["state"], first["runtime"], first["backend"]) == (1, "READY", "python", "container")
    again = await gateway.call("PUT", "/v1/functions/hello", json={"spec": {}, "source": SOURCE})
    assert again[0] == 200  # nothing changed: the same version stands
    assert again[1]["version"] == 1
    second = await gateway.deploy(source=SOURCE + "# changed\n")
    assert second["version"] == 2
    assert second["digest"] != first["digest"]
    third = await gateway.deploy(source=SOURCE + "# changed\n", memory_mb=256)
    assert third["version"] == 3  # the same code under another specification is another version
    _, shown, _ = await gateway.call("GET", "/v1/functions/hello")
    assert (shown["version"], shown["versions"], shown["spec"]["memory_mb"]) == (3, [1, 2, 3], 256)
    _, versions, _ = await gateway.call("GET", "/v1/functions/hello/versions")
    assert [version["version"] for version in versions["versions"]] == [3, 2, 1]
    assert versions["current"] == 3
    back = await gateway.deploy()  # what was there before is deployed anew, as a version of its own
    assert (back["version"], back["digest"]) == (4, first["digest"])
    _, listed, _ = await gateway.call("GET", "/v1/functions")
    assert [(function["name"], function["version"]) for function in listed["functions"]] == [("hello", 4)]

    await gateway.invoke()
    assert gateway.double.calls[-1].version == 4
    assert (await gateway.call("DELETE", "/v1/functions/hello"))[0] == 204
    for method, path in (
        ("GET", "/v1/functions/hello"), ("GET", "/v1/functions/hello/versions"), ("DELETE", "/v1/functions/hello"),
        ("POST", "/v1/functions/hello/invoke"), ("GET", "/fn/hello/"),
    ):  # fmt: skip
        status, body, _ = await gateway.call(method, path)
        assert (status, body["code"]) == (404, "E_FUNCTION_NOT_FOUND"), (method, path)
    assert (await gateway.call("GET", "/v1/functions"))[1] == {"functions": []}
    revived = await gateway.deploy()
    assert revived["version"] == 5  # a number is never given twice


async def test_the_same_code_is_stored_once(gateway):
    await gateway.deploy("a")
    await gateway.deploy("b")
    await gateway.deploy("a", memory_mb=64)
    info = await gateway.bus.stream_info("OBJECTS_CODE")
    assert info.messages == 2  # one chunk, one meta


async def test_of_deployments_at_once_each_wins_its_own_version(gateway, broker, bus, make_gateway, tmp_path):
    async with make_gateway(broker, bus, tmp_path, instance="gateway-2") as second:
        deployed = await asyncio.gather(*((gateway, second)[n % 2].deploy(source=SOURCE + f"# {n}\n") for n in range(12)))
        assert sorted(version["version"] for version in deployed) == list(range(1, 13))
        assert len({version["digest"] for version in deployed}) == 12
        for one in (gateway, second):
            _, shown, _ = await one.call("GET", "/v1/functions/hello")
            assert (shown["version"], shown["versions"]) == (12, list(range(1, 13)))
            newest = next(version for version in deployed if version["version"] == 12)
            assert shown["digest"] == newest["digest"]


async def test_the_same_deployment_from_everywhere_at_once_ends_as_one_current_digest(gateway):
    await asyncio.gather(*(gateway.deploy() for _ in range(6)))
    digests = {(await gateway.call("GET", "/v1/functions/hello"))[1]["digest"]}
    assert digests == {(await gateway.deploy())["digest"]}


async def test_a_deployment_on_one_gateway_is_called_at_once_on_another(gateway, broker, bus, make_gateway, tmp_path, eventually):
    async with make_gateway(broker, bus, tmp_path, instance="gateway-2") as second:
        await gateway.deploy()
        assert (await second.invoke())[0] == 200
        await gateway.deploy(source=SOURCE + "# new\n")

        async def new():
            _, _, headers = await second.invoke()
            _, job, _ = await second.call("GET", f"/v1/jobs/{headers['x-hearth-job']}?wait=5")
            return job["version"] == 2

        await eventually(new, 3.0)  # the promise is 1 s, on a machine that does nothing else


async def test_a_redeploy_under_load_fails_no_call(gateway):
    await gateway.deploy()
    stop = asyncio.Event()
    statuses: list[int] = []

    async def client():
        while not stop.is_set():
            statuses.append((await gateway.invoke())[0])

    clients = [asyncio.ensure_future(client()) for _ in range(8)]
    for number in range(5):
        await gateway.deploy(source=SOURCE + f"# {number}\n")
    last = len(gateway.double.calls)
    await gateway.invoke()
    stop.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200}
    assert {call.version for call in gateway.double.calls[last + 8 :]} <= {6}


async def test_tenants_have_names_of_their_own(gateway):
    other = await gateway.tenant_key("other")
    await gateway.deploy()
    assert (await gateway.deploy(key=other, source=SOURCE + "# theirs\n"))["version"] == 1
    assert (await gateway.call("DELETE", "/v1/functions/hello", key=other))[0] == 204
    assert (await gateway.call("GET", "/v1/functions/hello"))[0] == 200


async def test_the_schema_is_public_and_is_the_one_that_checks(gateway):
    status, schema, _ = await gateway.call("GET", "/v1/schemas/function.json", key="-")
    assert status == 200
    assert schema["additionalProperties"] is False
    assert "memory_mb" in schema["properties"]
