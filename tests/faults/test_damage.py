"""A platform to which odd things are done (PROMISES 11, 18, 23, 26, 31): messages of other releases, functions that kill what
they run in, bodies over the limit, stores without room, streams broken by hand. Calls go on, and what is wrong is said."""

import asyncio
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator

import pytest
from replaying import Recorded, corpus
from rounds import rounds
from tests.support.platform import Answer, Client, Platform, client
from tests.support.platform import hearth as hearth_command

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Dead
from hearth_contracts.enums import Reason
from hearth_contracts.functions import FunctionHead, registry_key
from hearth_kit.nats_bus import NatsBus, connect

pytestmark = [pytest.mark.platform, pytest.mark.docker, pytest.mark.timeout(300)]


@contextlib.asynccontextmanager
async def by_hand(platform: Platform) -> AsyncIterator[NatsBus]:
    """The broker, with every right."""
    login = json.loads((platform.data / "state/credentials/bootstrap.json").read_text())
    url = (await asyncio.to_thread(platform.status))["broker"]
    async with connect(url=url, instance="bootstrap", user=login["user"], password=login["password"]) as bus:
        yield bus


async def test_recorded_messages_of_every_release_stop_nobody(sturdy: Platform) -> None:
    """As they were recorded, with a field of a later release, and cut in half: each is read, or kept as a dead letter with the
    reason. No process ends over one, none waits for ever, and calls go on."""
    async with client(sturdy) as hearth, by_hand(sturdy) as bus:
        pids = await asyncio.to_thread(sturdy.pids)
        executor = next((sturdy.data / "state/credentials").glob("executor-1-*.json")).stem
        gateway = next(name for name in pids if name.startswith("gateway"))
        messages = corpus({"executor": executor, "gateway": gateway if "-" in gateway else f"{gateway}-1"})
        assert len(messages) > 40
        for tenant, function in {message.function for message in messages if message.job}:
            head = FunctionHead(tenant=tenant, function=function, current=1, versions=(1,), updated_at=time.time())
            await bus.publish(f"$KV.FUNCTIONS.{registry_key(tenant, function)}", head.model_dump_json().encode())
        for message in messages:
            later = json.dumps({**json.loads(message.text), "of_a_later_release": {"x": 1}})
            for text in (message.text, later, message.text[: len(message.text) // 2]):
                await _replay(bus, message, text)
        await hearth.deploy("after-them")
        assert (await hearth.invoke("after-them", {"name": "ada"})).json == {"hello": "ada"}

        async def settled() -> bool:
            for name in ("CALLS", "JOBS", "RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC"):
                info = await bus.stream_info(name)
                if info is None or info.messages:
                    return False
            return True

        await hearth.until(settled, 60, "something waits for ever")
        ended = {message.job for message in messages} - {""}
        for job in ended:
            assert await bus.get_next("RECORDS", f"hearth.v1.records.*.*.{job}"), job
        kept = [stored async for stored in _all(bus, "DEAD", subjects.DEAD_ALL)]
        reasons = [dead.ending.failure.type for dead in kept if dead.ending.failure and dead.ending.reason is Reason.REJECTED]
        # Calls, jobs and outcomes of both lanes are the scheduler's to understand.
        halves = [m for m in messages if m.label in ("call.v1", "job.v1", "outcome.v1", "outcome-sync.v1")]
        assert reasons.count("E_UNDECODABLE") >= len(halves)
        assert await asyncio.to_thread(sturdy.pids) == pids


async def _replay(bus: NatsBus, message: Recorded, text: str) -> None:
    if message.is_entry:
        await bus.publish(message.subject, text.encode())
        return
    headers = {"Hearth-Contract": message.label, "Hearth-Meta": text}
    if message.label == "record.v1":
        headers["Nats-Expected-Last-Subject-Sequence"] = "0"
    bus.send(message.subject, b"", headers=headers)


async def _all(bus: NatsBus, stream: str, subject: str) -> AsyncIterator[Dead]:
    sequence = 1
    while (stored := await bus.get_next(stream, subject, sequence)) is not None:
        sequence = stored.sequence + 1
        with contextlib.suppress(Exception):  # one of the messages above, cut in half
            yield stored.message.meta(Dead)


async def test_a_function_that_kills_its_sandbox_uses_up_its_attempts(sturdy: Platform) -> None:
    """Exactly as many as it has; then it has failed, and nothing of it is left in a stream."""
    source = "import os, signal\n\ndef handle(event, context):\n    os.kill(os.getppid(), signal.SIGKILL)\n    os._exit(1)\n"
    async with client(sturdy) as hearth, by_hand(sturdy) as bus:
        await hearth.deploy("deadly", source, retry={"attempts": 3, "backoff_s": [0]})
        jobs = [await hearth.submit("deadly", {}) for _ in range(3)]
        for job in jobs:
            ended = await hearth.final(job, 60)
            assert (ended["state"], ended["attempts"]) == ("FAILED", 3), ended
        for name in ("JOBS", "RUNS", "OUTCOMES"):
            await hearth.until(lambda name=name: _is_empty(bus, name), 10, f"{name} is not empty")
        for job in jobs:
            assert await bus.get_last("DEAD", subjects.dead("default", job)), f"{job} has no dead letter"


async def _is_empty(bus: NatsBus, stream: str) -> bool:
    info = await bus.stream_info(stream)
    return info is not None and not info.messages


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 3 * 1024 * 1024])
async def test_what_does_not_fit_a_message_costs_no_connection(sturdy: Platform, size: int) -> None:
    """Given and returned, one byte over the broker's limit: stored by reference, whole."""
    async with client(sturdy) as hearth:
        await hearth.deploy("mirror", "def handle(event, context):\n    return event\n")
        before = await _reconnects(sturdy, hearth)
        for _ in range(3):
            event = b'["%s"]' % (b"x" * (size - 4))
            for headers in ({}, {"Prefer": "respond-async"}):
                answer = await hearth.call(
                    "POST",
                    "/v1/functions/mirror/invoke",
                    data=io.BytesIO(event),
                    headers={"content-type": "application/json", **headers},
                )
                assert answer.status == (202 if headers else 200), answer.body[:300]
                assert headers or answer.body == event
                assert (await hearth.final(answer.headers["x-hearth-job"]))["state"] == "SUCCESS"
        assert await _reconnects(sturdy, hearth) == before


async def _reconnects(platform: Platform, hearth: Client) -> dict[str, float]:
    """How often each service has connected anew."""
    counts: dict[str, float] = {}
    for process in (await asyncio.to_thread(platform.status))["processes"]:
        if process["name"].startswith("broker") or not process["port"]:
            continue
        async with hearth.session.get(f"http://127.0.0.1:{process['port']}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        counts[process["name"]] = sum(float(line.split()[-1]) for line in lines if line.startswith("hearth_bus_reconnects_total"))
    assert len(counts) >= 5
    return counts


@pytest.mark.parametrize("harm", ["altered", "deleted"])
async def test_a_stream_broken_by_hand_is_said_with_the_fix_that_mends_it(sturdy: Platform, harm: str) -> None:
    """Not ready, in the readiness body, until somebody does what it says; and what it says is enough."""
    async with client(sturdy) as hearth, by_hand(sturdy) as bus:

        async def problems() -> dict[str, str]:
            answer = await hearth.call("GET", "/readyz")
            assert (answer.status == 200) == (not answer.json["problems"])
            return answer.json["problems"]

        async def wrong() -> bool:
            return "DEAD" in await problems()

        async def right() -> bool:
            return not await problems()

        await hearth.until(right, 30, "not ready to begin with")
        if harm == "altered":
            await bus._api_call("STREAM.UPDATE.DEAD", streams.DEAD.config() | {"max_age": 3_600_000_000_000})
        else:
            await bus._api_call("STREAM.DELETE.DEAD")
        await hearth.until(wrong, 20, "nobody said so")
        fix = "./hearth doctor --fix --remake DEAD"
        assert fix in (await problems())["DEAD"]
        began = time.monotonic()
        while time.monotonic() - began < 5.5:  # every service has looked twice meanwhile
            assert await wrong()
            await asyncio.sleep(0.5)
        info = await bus.stream_info("DEAD")
        assert (info is None) == (harm == "deleted"), "silently made again"
        done = await asyncio.to_thread(hearth_command, *fix.split()[1:], "--data", str(sturdy.data))
        assert "✓ making DEAD anew" in done.stdout + done.stderr
        await hearth.until(right, 20, "the fix did not mend it")


@pytest.mark.parametrize("count", rounds(3, 20))
async def test_a_full_store_refuses_and_heals_alone(sturdy: Platform, count: int) -> None:
    """More jobs than the broker has room for: each is accepted and ends, or refused with the time to come again. Nobody has to
    do anything for it to accept again."""
    source = "import time\n\ndef handle(event, context):\n    time.sleep(0.02)\n    return len(event)\n"
    async with client(sturdy) as hearth, by_hand(sturdy) as bus:
        await hearth.deploy("heavy", source)
        await hearth.invoke("heavy", "")
        await bus._api_call("STREAM.UPDATE.JOBS", streams.JOBS.config() | {"max_bytes": 100_000})
        try:
            for _ in range(count):
                answers = await asyncio.gather(*(_submit_heavy(hearth) for _ in range(60)))
                refused = [answer for answer in answers if answer.status == 503]
                accepted = [answer for answer in answers if answer.status == 202]
                assert len(refused) + len(accepted) == 60
                assert refused
                assert {(answer.json["code"], bool(answer.headers["retry-after"])) for answer in refused} == {
                    ("E_STORE_FULL", True)
                }
                for answer in accepted:
                    assert (await hearth.final(answer.headers["x-hearth-job"]))["state"] == "SUCCESS"
                await hearth.until(lambda: _is_accepted(hearth), 10, "it does not heal")
        finally:
            await bus._api_call("STREAM.UPDATE.JOBS", streams.JOBS.config())


async def _submit_heavy(hearth: Client) -> Answer:
    return await hearth.call("POST", "/v1/functions/heavy/invoke", json="x" * 10_000, headers={"Prefer": "respond-async"})


async def _is_accepted(hearth: Client) -> bool:
    answer = await _submit_heavy(hearth)
    return answer.status == 202 and (await hearth.final(answer.headers["x-hearth-job"]))["state"] == "SUCCESS"
