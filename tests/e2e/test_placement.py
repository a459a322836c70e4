"""Calls go where they are warm, and elsewhere when that place says nothing any more."""

import asyncio
import os
import signal

import pytest
from tests.support.platform import Client

pytestmark = [pytest.mark.platform, pytest.mark.docker]

WHO = "import os\n\ndef handle(event, context):\n    return [os.readlink('/proc/self/ns/pid')]\n"


async def _executor_of(hearth: Client, job: str) -> str:
    await hearth.until(lambda: _ended(hearth, job), 10, "no record")
    return (await hearth.job(job))["executor"]


async def _ended(hearth: Client, job: str) -> bool:
    return (await hearth.job(job)).get("state") in ("SUCCESS", "FAILED")


async def test_a_warm_function_stays_where_it_is_warm(hearth: Client) -> None:
    """Given a function warm on one of three executors, when it is called 200 times one at a time, then all run there."""
    await hearth.deploy("settled", WHO)
    first = await hearth.invoke("settled")
    home = await _executor_of(hearth, first.headers["x-hearth-job"])
    answers = [await hearth.invoke("settled") for _ in range(200)]
    assert {answer.status for answer in answers} == {200}
    assert {answer.body for answer in answers} == {first.body}
    sampled = answers[::20]
    assert {await _executor_of(hearth, answer.headers["x-hearth-job"]) for answer in sampled} == {home}


async def test_a_silent_executor_is_passed_over(hearth: Client) -> None:
    """Given a function warm on one executor, when that executor's reports stop, then calls are answered by another."""
    await hearth.deploy("moving", WHO)
    first = await hearth.invoke("moving")
    home = await _executor_of(hearth, first.headers["x-hearth-job"])
    pid = hearth.platform.pids()[home.rsplit("-", 1)[0]]
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(hearth.invoke("moving") for _ in range(8)))
        assert {answer.status for answer in answers} == {200}
        assert {answer.body for answer in answers}.isdisjoint({first.body})
    finally:
        os.kill(pid, signal.SIGCONT)

    async def three() -> bool:
        return len([e for e in (await hearth.call("GET", "/v1/system")).json["executors"] if e.get("state") != "gone"]) == 3

    await hearth.until(three, 60, "the stopped executor did not come back")


async def test_no_sandbox_serves_two_calls_at_once(hearth: Client) -> None:
    """Given 60 callers and a small pool, when all call at once, then no sandbox ever has two calls inside."""
    source = (
        "import os, socket, time\n\ndef handle(event, context):\n    path = '/tmp/inside'\n"
        "    clash = os.path.exists(path)\n    open(path, 'w').close()\n    time.sleep(0.01)\n    os.unlink(path)\n"
        "    return clash\n"
    )
    await hearth.deploy("narrow", source, isolation="reuse")
    answers = await asyncio.gather(*(hearth.invoke("narrow") for _ in range(300)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.json for answer in answers} == {False}
