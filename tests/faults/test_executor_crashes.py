"""An executor dies, stands still or is stopped, at the worst of moments (PROMISES 1-5, 11, 13).

Each test ends in the same check: every job has one final, no more runs than promised, and whoever was told something was
told what is recorded. Where a guard makes the difference, a control runs without it and sees the difference.
"""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from rounds import rounds
from scheduler_world import until
from small_platform import SmallPlatform
from tests.support import checker
from tests.support.platform import Told

from hearth_contracts.calls import Call
from hearth_contracts.enums import Lane, Reason, State

pytestmark = pytest.mark.broker

#: Executors that are harmed at once. One more is there to take over.
TOGETHER = 3
LANES = (Lane.ASYNC, Lane.SYNC)
AGAIN = {"attempts": 2, "backoff_s": [0]}


def waves(count: int) -> list[range]:
    return [range(first, min(first + TOGETHER, count)) for first in range(0, count, TOGETHER)]


async def die(small: SmallPlatform, failpoint: str, lanes: tuple[Lane, ...], count: int, *without: str) -> list[Call]:
    """`count` jobs, each on an executor that dies at this step."""
    small.scheduler()
    await small.deploy_work(retry=AGAIN)
    calls: list[Call] = []
    async with small.kept(TOGETHER + 1, failpoint=failpoint, without=without) as living:
        for wave in waves(count):
            before = list(living)
            for number in wave:
                (small.folder / f"die-{number}").touch()
            calls += [await small.submit(lanes[number % len(lanes)], n=number) for number in wave]
            await until(
                lambda wave=wave, before=before: sum(one.dead for one in before) == len(wave), what="they died", within_s=40
            )
            assert {one.process.returncode for one in before if one.dead} == {-signal.SIGKILL}
            for call in calls[-len(wave) :]:
                await small.ended(call.job, within_s=20)
            for one in list(living):
                await until(lambda one=one: not one.dead or one not in living, within_s=40)
    return calls


@pytest.mark.parametrize("count", rounds(3, 50))
@pytest.mark.parametrize(
    ("failpoint", "lanes", "runs"),
    [
        ("exec.after_accept", LANES, 1),
        ("exec.after_exit", LANES, 2),
        ("exec.after_reply", (Lane.SYNC,), 1),
        ("exec.before_ack", LANES, 1),
    ],
)
async def test_killed_at_a_step(small, failpoint, lanes, runs, count):
    """It runs again where its result was not told, and only there: an answer that was given becomes the record."""
    calls = await die(small, failpoint, lanes, count)
    await small.check(calls)
    ran = small.runs()
    assert [ran[call.job] for call in calls] == [runs] * count


async def test_acknowledged_before_it_is_told_a_job_is_lost_by_a_crash(small, tmp_path):
    """Without custody the run is gone with its executor, and only the sweeper finds that there was a job."""
    small.persister(stores={"a": tmp_path / "a"})
    calls = await die(small, "exec.after_exit", (Lane.ASYNC,), 3, "custody")
    endings = [(await small.recorded(call))[0].ending for call in calls]
    assert {(ending.state, ending.reason) for ending in endings} == {(State.FAILED, Reason.LOST)}


@pytest.mark.parametrize("round_", [0, *(pytest.param(number, marks=pytest.mark.long) for number in range(1, 5))])
async def test_killed_with_two_hundred_running(small, tmp_path, round_):
    """On both lanes, with two stores: all end, each result once in either store, within twice the acknowledgement wait."""
    ack_wait_s = 5.0
    stores = {"a": tmp_path / "a", "b": tmp_path / "b"}
    small.scheduler(HEARTH_ACK_WAIT_S=str(ack_wait_s))
    small.persister(stores=stores)
    await small.deploy_work(retry=AGAIN)
    victim = await small.running("victim", slots=200)
    calls = [await small.submit(LANES[number % 2], n=number, s=600) for number in range(200)]
    await until(lambda: small.started(*calls), what="all run")
    await small.running("survivor", slots=200)
    victim.process.kill()
    killed_at = time.monotonic()
    for call in calls:
        await small.ended(call.job, within_s=2 * ack_wait_s)
    took_s = time.monotonic() - killed_at
    await small.check(calls)
    assert took_s <= 2 * ack_wait_s
    assert max(small.runs().values()) == 2
    await in_both_stores(small, calls, list(stores.values()))


async def in_both_stores(small: SmallPlatform, calls: list[Call], stores: list[Path]) -> None:
    told = [
        Told(call.job, 200, small.replies[call.job][-1].body if call.lane is Lane.SYNC else b"", call.lane.value)
        for call in calls
    ]
    deadline = time.monotonic() + 30
    while True:
        verdict = await asyncio.to_thread(checker.check, told, stores)
        if not verdict.lost or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    assert verdict.clean, verdict


@pytest.mark.parametrize("count", rounds(2, 10))
async def test_a_stop_with_fifty_running_burns_no_attempt(small, count):
    """What ends in time ends there, the rest goes elsewhere; nothing new is taken a second later."""
    small.scheduler()
    await small.deploy_work(retry=AGAIN)
    for _ in range(count):
        await stop_with_fifty_running(small)


async def stop_with_fifty_running(small: SmallPlatform) -> None:
    drain_s = 1.5
    leaving = await small.running("leaving", slots=50, HEARTH_DRAIN_S_MAX=str(drain_s))
    short = [await small.submit(LANES[number % 2], n=number, s=1.0) for number in range(25)]
    long = [await small.submit(LANES[number % 2], n=number, s=600) for number in range(25)]
    await until(lambda: small.started(*short, *long), what="all run")
    staying = await small.running("staying", slots=50)
    leaving.process.terminate()
    began = time.monotonic()
    await asyncio.sleep(1)  # the promise is a second
    late = [await small.submit(LANES[number % 2], n=number) for number in range(10)]
    await until(lambda: leaving.dead, what="it has stopped")
    assert time.monotonic() - began <= drain_s + 5
    assert leaving.process.returncode == 0
    await small.check([*short, *long, *late])
    for call in (*short, *long, *late):
        assert (await small.recorded(call))[0].ending.attempt == 1
    runs = small.runs()
    assert [[runs[call.job] for call in calls] for calls in (short, long, late)] == [[1] * 25, [2] * 25, [1] * 10]
    assert not {call.job for call in late} & set(small.ran_in(leaving.process))
    staying.process.terminate()
    await until(lambda: staying.dead)


async def test_without_the_hand_back_a_stop_costs_attempts(small):
    small.scheduler()
    await small.deploy_work(retry=AGAIN)
    leaving = await small.running("leaving", without=("hand-back",))
    call = await small.submit(Lane.ASYNC, s=600)
    await until(lambda: small.started(call))
    await small.running("staying")
    leaving.process.terminate()
    assert (await small.recorded(call))[0].ending.attempt == 2


async def zombies(small: SmallPlatform, count: int, *without: str, lanes: tuple[Lane, ...] = LANES) -> int:
    """Executors that stand still, their function at its end, for three times the acknowledgement wait and until their job
    has ended elsewhere. How many finals they overwrite once they go on."""
    ack_wait_s = 0.5
    small.scheduler(HEARTH_ACK_WAIT_S=str(ack_wait_s))
    await small.deploy_work(retry=AGAIN)
    overwritten = 0
    calls: list[Call] = []
    words = {"HEARTH_HEARTBEAT_S": "0.15"}
    async with small.kept(TOGETHER + 1, without=without, **words) as living:
        for wave in waves(count):
            before = list(living)
            now = [await small.submit(lanes[number % len(lanes)], n=number, s=0.3) for number in wave]
            calls += now
            await until(lambda now=now: small.started(*now), what="they run", within_s=40)
            ran = small.ran_by()
            still = [one for one in before if any(one.process.pid in ran[call.job] for call in now)]
            for one in still:
                one.process.send_signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            finals = {call.job: await small.recorded(call) for call in now}
            await asyncio.sleep(max(0, stopped_at + 3 * ack_wait_s - time.monotonic()))
            for one in still:
                one.process.send_signal(signal.SIGCONT)
            if "membership" in without:
                await asyncio.sleep(0.5)  # nothing tells that they have had their say
                for one in still:
                    one.process.kill()
            await until(lambda still=still: all(one.dead for one in still), what="they have ended")
            for call in now:
                overwritten += await small.recorded(call) != finals[call.job]
            await until(lambda: not any(one.dead for one in living), what="they are back", within_s=40)
    if "fence" not in without:
        await small.check(calls)
        assert max(small.runs().values()) <= 2
    return overwritten


@pytest.mark.parametrize("count", rounds(3, 100))
async def test_one_that_stood_still_says_nothing_when_it_goes_on(small, count):
    """It was given up meanwhile: it asks before it speaks, and ends."""
    assert await zombies(small, count) == 0


@pytest.mark.parametrize("count", rounds(3, 30))
async def test_and_if_it_spoke_the_record_would_stand(small, count):
    """The fence alone: the first record of a job is the only one."""
    assert await zombies(small, count, "membership", lanes=(Lane.ASYNC,)) == 0


async def test_without_the_fence_it_overwrites_what_is_recorded(small):
    assert await zombies(small, 3, "membership", "fence", lanes=(Lane.ASYNC,)) > 0


async def ten_waits(small: SmallPlatform, *without: str, heartbeat_s: float) -> list[int]:
    """Three jobs, each ten times as long as the broker waits for an acknowledgement: how often each ran."""
    small.scheduler(HEARTH_ACK_WAIT_S="0.3")
    await small.deploy_work(retry=AGAIN)
    await small.running("executor-0", slots=10, without=without, HEARTH_HEARTBEAT_S=str(heartbeat_s))
    calls = [await small.submit(LANES[number % 2], n=number, s=3.0) for number in range(3)]
    await until(lambda: small.started(*calls))
    for call in calls:
        await small.recorded(call)
    await small.check(calls)
    runs = small.runs()
    return [runs[call.job] for call in calls]


async def test_a_job_of_ten_acknowledgement_waits_runs_once(small):
    assert await ten_waits(small, heartbeat_s=0.1) == [1, 1, 1]


async def test_with_its_heartbeats_cut_its_redelivery_is_recognised(small):
    assert await ten_waits(small, heartbeat_s=3600) == [1, 1, 1]


async def test_unrecognised_it_runs_twice_and_still_ends_once(small):
    """Heartbeats cut, and nobody remembers that it runs: the record is the last fence, and it holds."""
    assert min(await ten_waits(small, "same", heartbeat_s=3600)) >= 2


@pytest.mark.parametrize("count", rounds(3, 20))
async def test_a_job_that_always_kills_its_executor_ends(small, count):
    """Exactly its attempts, then FAILED, with one dead letter each and nothing left in a stream."""
    small.scheduler()
    await small.deploy_work(retry={"attempts": 3, "backoff_s": [0]})
    async with small.kept(2):
        calls = [await small.submit(Lane.ASYNC, n=number, deadly=True) for number in range(count)]
        for call in calls:
            record, _ = await small.recorded(call, within_s=60 + 10 * count)
            assert (record.ending.reason, record.ending.attempt) == (Reason.LOST, 3)
        await small.check(calls, state=State.FAILED)
        runs = small.runs()
        assert [runs[call.job] for call in calls] == [3] * count
        assert sorted(dead.call.job for dead in await small.dead_letters()) == sorted(call.job for call in calls)
