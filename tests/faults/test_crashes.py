"""Kill any one thing of a whole platform under load (PROMISES 1, 8, 21, 59): nothing accepted is lost, nothing is recorded
twice, and callers were told what is recorded.

Every test of calls ends in the checker, which reads the stores back from disk.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from rounds import rounds
from tests.support import checker
from tests.support.platform import Client, Platform, client

from hearth_cli.local.engine_api import EngineApi

pytestmark = [pytest.mark.platform, pytest.mark.docker, pytest.mark.timeout(300)]

SLOW = "import time\n\ndef handle(event, context):\n    time.sleep(0.05)\n    return event['n']\n"


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


@pytest.mark.parametrize("count", rounds(2, 10))
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
