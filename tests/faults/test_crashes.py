"""A whole platform, of which one thing at a time breaks (PROMISES 1, 8, 9, 11, 18, 21, 26, 31, 59): nothing accepted is lost,
nothing is recorded twice, and callers were told what is recorded.

The tests of load end in the checker, which reads the stores back from disk.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from replaying import Recorded, corpus
from rounds import rounds
from tests.support import checker
from tests.support.platform import Client, Platform, client, started
from tests.support.platform import hearth as hearth_command

from hearth_cli.local.engine_api import EngineApi
from hearth_contracts import streams, subjects
from hearth_contracts.calls import Dead
from hearth_contracts.enums import Reason
from hearth_contracts.functions import FunctionHead, registry_key
from hearth_kit.nats_bus import NatsBus, connect

pytestmark = [pytest.mark.platform, pytest.mark.docker, pytest.mark.timeout(300)]

SLOW = "import time\n\ndef handle(event, context):\n    time.sleep(0.05)\n    return event['n']\n"


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two of what can be two, and two stores."""
    data = tmp_path_factory.mktemp("faults") / "data"
    stores = f"a={data}/store-a,b={data}/store-b"
    with started(
        data, "--executors", "2", "--schedulers", "2", env={"HEARTH_STORE_FOLDERS": stores, "HEARTH_SLOTS": "8"}
    ) as platform:
        yield platform


async def _load(hearth: Client, name: str, *, sync: int, jobs: int, harm: "asyncio.Event") -> None:
    """Callers on both lanes; `harm` is set once a third of the work is under way."""
    await hearth.deploy(name, SLOW, timeout_s=60, retry={"attempts": 3, "backoff_s": [0.2]})
    await hearth.invoke(name, {"n": 0})
    total = sync + jobs
    begun = 0

    def count() -> None:
        nonlocal begun
        begun += 1
        if begun == total // 3:
            harm.set()

    async def call(number: int) -> None:
        async with lanes:
            count()
            answer = await hearth.invoke(name, {"n": number})
            assert answer.status == 200, (answer.status, answer.body)
            assert answer.json == number

    async def submit(number: int) -> None:
        async with lanes:
            count()
            for _ in range(200):
                answer = await hearth.call(
                    "POST", f"/v1/functions/{name}/invoke", json={"n": number}, headers={"Prefer": "respond-async"}
                )
                if answer.status == 202:
                    hearth.told.append(checker.Told(answer.headers["x-hearth-job"], 202, b"", "async"))
                    return
                # Refused is an honest answer while the broker is away; accepted is a promise.
                assert answer.status in (429, 503), (answer.status, answer.body)
                await asyncio.sleep(0.1)
            raise AssertionError("never accepted again")

    lanes = asyncio.Semaphore(24)
    async with asyncio.TaskGroup() as group:
        for number in range(sync):
            group.create_task(call(number))
        for number in range(jobs):
            group.create_task(submit(number))


async def _verdict(hearth: Client, data: Path) -> checker.Verdict:
    for call in [call for call in hearth.told if call.lane == "async"]:
        await hearth.final(call.job, 90)
    stores = [data / "store-a", data / "store-b"]
    verdict = await asyncio.to_thread(checker.check, hearth.told, stores)
    for _ in range(100):
        if not verdict.lost:
            break
        await asyncio.sleep(0.2)
        verdict = await asyncio.to_thread(checker.check, hearth.told, stores)
    return verdict


@pytest.mark.parametrize("victim", ["executor-1", "scheduler-1", "scheduler-2", "persister", "ai-proxy", "broker"])
async def test_kill_one_under_load(sturdy: Platform, victim: str) -> None:
    """Given load on both lanes, when one process is killed, then every call is answered, recorded once and as told."""
    async with client(sturdy) as hearth:
        harm = asyncio.Event()
        load = asyncio.create_task(_load(hearth, f"under-{victim}", sync=120, jobs=120, harm=harm))
        done, _ = await asyncio.wait({load, asyncio.create_task(harm.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert load not in done, load.exception()
        await asyncio.to_thread(sturdy.kill, victim)
        await load
        verdict = await _verdict(hearth, sturdy.data)
        assert verdict.clean, verdict
        assert len(hearth.told) == 241

        async def back() -> bool:
            processes = (await asyncio.to_thread(sturdy.status))["processes"]
            return all(process["state"] == "ready" for process in processes)

        await hearth.until(back, 30, f"{victim} was not started again")


async def test_kill_the_gateway_under_load(sturdy: Platform) -> None:
    """Given load, when the gateway is killed, then every job it accepted is recorded once; calls in flight may be unknown."""
    async with client(sturdy) as hearth:
        await hearth.deploy("under-gateway", SLOW)
        jobs = [await hearth.submit("under-gateway", {"n": number}) for number in range(60)]
        calls = [asyncio.create_task(hearth.invoke("under-gateway", {"n": number})) for number in range(40)]
        await hearth.until(lambda: any(task.done() for task in calls), 20, "no call was answered")
        await asyncio.to_thread(sturdy.kill, "gateway")
        await asyncio.gather(*calls, return_exceptions=True)

        async def answers() -> bool:
            try:
                return (await hearth.call("GET", "/readyz")).status == 200
            except OSError:
                return False

        await hearth.until(answers, 30, "the gateway was not started again")
        for job in jobs:
            assert (await hearth.final(job))["state"] == "SUCCESS"
        verdict = await _verdict(hearth, sturdy.data)
        assert verdict.clean, verdict


@contextlib.asynccontextmanager
async def by_hand(platform: Platform) -> AsyncIterator[NatsBus]:
    """The broker, with every right."""
    login = json.loads((platform.data / "state/credentials/bootstrap.json").read_text())
    url = (await asyncio.to_thread(platform.status))["broker"]
    async with connect(url=url, instance="bootstrap", user=login["user"], password=login["password"]) as bus:
        yield bus


@pytest.mark.parametrize("count", rounds(2, 10))
async def test_sync_calls_pending_at_a_broker_restart_finish(sturdy: Platform, count: int) -> None:
    """Running and waiting ones: each caller has its own answer, and it is the recorded one."""
    async with client(sturdy) as hearth:
        await hearth.deploy("patient", "import time\n\ndef handle(event, context):\n    time.sleep(1.5)\n    return event['n']\n")
        await hearth.invoke("patient", {"n": 0})
        for round_ in range(count):
            calls = [asyncio.create_task(hearth.invoke("patient", {"n": number})) for number in range(24)]
            await asyncio.sleep(0.7)  # they are under way, and none has ended
            assert not any(call.done() for call in calls)
            broker = await asyncio.to_thread(sturdy.pid, "broker")
            os.kill(broker, signal.SIGTERM if round_ % 2 else signal.SIGKILL)
            answers = await asyncio.wait_for(asyncio.gather(*calls), 60)
            assert [(answer.status, answer.json) for answer in answers] == [(200, number) for number in range(24)]
        verdict = await _verdict(hearth, sturdy.data)
        assert verdict.clean, verdict


@pytest.mark.parametrize("count", rounds(1, 10))
async def test_containers_of_a_killed_executor_go_and_its_peers_stay(sturdy: Platform, count: int) -> None:
    """Within thirty seconds."""
    api = EngineApi()
    platform = (await asyncio.to_thread(sturdy.status))["platform"]

    def of(executor: str) -> set[str]:
        labels = [f"hearth.platform={platform}", f"hearth.executor={executor}"]
        return {entry["Id"] for entry in api.containers(labels)}

    async with client(sturdy) as hearth:
        await hearth.until(lambda: of("executor-1") and of("executor-2"), 60, "both keep containers warm")
        for _ in range(count):
            orphans, peers = of("executor-1"), of("executor-2")
            await asyncio.to_thread(sturdy.kill, "executor-1")
            await hearth.until(lambda orphans=orphans: not orphans & of("executor-1"), 30, "its containers are still there")
            assert peers <= of("executor-2")
            await hearth.until(lambda: of("executor-1"), 30, "it keeps none warm again")


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
        while time.monotonic() - began < 7:  # every service has looked twice meanwhile
            assert await wrong()
            await asyncio.sleep(0.5)
        info = await bus.stream_info("DEAD")
        assert (info is None) == (harm == "deleted"), "silently made again"
        done = await asyncio.to_thread(hearth_command, *fix.split()[1:], "--data", str(sturdy.data))
        assert "✓ making DEAD anew" in done.stdout + done.stderr
        await hearth.until(right, 20, "the fix did not mend it")
