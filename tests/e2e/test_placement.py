"""Calls go where they are warm, and elsewhere when that place says nothing any more."""

import asyncio
import contextlib
import os
import random
import signal
from itertools import accumulate
from pathlib import Path
from typing import Any

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
    """Given 200 callers and a function of at most 8 at once, when all call, then no sandbox ever has two calls inside, and no
    moment has more than 8. (More than 8 may have served in all: one that could not be put in order is replaced.)"""
    source = (
        "import os, time\n\ndef handle(event, context):\n    began, path = time.monotonic(), '/tmp/inside'\n"
        "    clash = os.path.exists(path)\n    open(path, 'w').close()\n    time.sleep(0.01)\n    os.unlink(path)\n"
        "    return [clash, os.readlink('/proc/self/ns/pid'), began, time.monotonic()]\n"
    )
    await hearth.deploy("narrow", source, isolation="reuse", scale={"max": 8})

    async def caller() -> list[list[Any]]:
        answers = [await hearth.invoke("narrow") for _ in range(3)]
        assert {answer.status for answer in answers} == {200}
        return [answer.json for answer in answers]

    said = [answer for answers in await asyncio.gather(*(caller() for _ in range(200))) for answer in answers]
    assert len(said) == 600
    assert {clash for clash, *_ in said} == {False}
    assert len({sandbox for _, sandbox, *_ in said}) > 1
    # One clock for all sandboxes. At the same instant an end comes before a beginning.
    turns = sorted([(began, 1) for *_, began, _ in said] + [(ended, -1) for *_, ended in said])
    assert 1 < max(accumulate(change for _, change in turns)) <= 8


ONCE = """
import os

SEEN = []


def handle(event, context):
    SEEN.append(1)
    born = open('/proc/1/stat').read().rsplit(')', 1)[1].split()[19]
    return [os.readlink('/proc/self/ns/pid') + born, os.getpid(), len(SEEN), context.start]
"""


async def test_what_isolation_promises_is_what_happened(hearth: Client) -> None:
    """Given a function of each isolation, when it is called 20 times, then processes, globals, containers and the start that
    is told are as promised."""
    told = dict[str, list[list[Any]]]()
    for isolation in ("process", "reuse", "fresh"):
        await hearth.deploy(f"once-{isolation}", ONCE, isolation=isolation)
        told[isolation] = []
        met = set[str]()
        for _ in range(20):
            answer = await hearth.invoke(f"once-{isolation}")
            container, *rest = answer.json
            start = "warm" if container in met else "cold"
            assert (answer.headers["x-hearth-start"], rest[-1]) == (start, start)
            met.add(container)
            told[isolation].append(answer.json)
    process, reuse, fresh = told["process"], told["reuse"], told["fresh"]
    assert len({(container, pid) for container, pid, *_ in process}) == 20
    assert {calls for *_, calls, _ in process} == {1}
    assert len({(container, pid) for container, pid, *_ in reuse}) == len({container for container, *_ in reuse})
    assert max(calls for *_, calls, _ in reuse) > 1
    assert len({container for container, *_ in fresh}) == 20
    assert {calls for *_, calls, _ in fresh} == {1}


HOSTILE = """
import os, signal, subprocess, time


def handle(event, context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", event["mark"]], start_new_session=True)
    context.log("begun")
    subprocess.run(["sleep", event["mark"]])
"""


def _running(mark: str) -> int:
    """Processes on this machine that were started with this mark."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            count += mark.encode() in path.read_bytes().split(b"\0")
    return count


@pytest.mark.parametrize("end", ["cancel", "timeout"])
async def test_no_process_is_left_of_a_call_that_was_stopped(hearth: Client, end: str) -> None:
    """Given a function that ignores its signals and starts others, when it is cancelled or its time is over, then all are gone."""
    await hearth.deploy("lingers", HOSTILE, timeout_s=60 if end == "cancel" else 1, retry={"attempts": 1})
    mark = f"7{random.randrange(10**8):08d}"
    job = await hearth.submit("lingers", {"mark": mark})
    await hearth.until(lambda: _running(mark) == 2, 10, "it did not begin")
    if end == "cancel":
        assert (await hearth.call("DELETE", f"/v1/jobs/{job}")).status in (200, 202, 204)
    assert (await hearth.final(job, 15))["reason"] == {"cancel": "cancelled", "timeout": "timeout"}[end]
    await hearth.until(lambda: _running(mark) == 0, 5, "a process is left")


OTHERS = """
import os


def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return type(error).__name__


def handle(event, context):
    return {
        "beside": attempt(lambda: os.chdir("../other")),
        "code": sorted(os.listdir("/code")),
        "folders": {folder: os.listdir(folder) for folder in ("/tmp", "/output", "/dev/shm", "/home", "/root", "/srv", "/mnt")
                    if os.access(folder, os.R_OK)},
        "names": [name for name in os.environ if name.startswith(("HEARTH_", "NATS"))],
        "engine": attempt(lambda: os.stat("/var/run/docker.sock")),
    }
"""


async def test_one_tenants_function_finds_nothing_of_anothers(hearth: Client) -> None:
    await hearth.deploy("other", OTHERS)
    await hearth.deploy("looks", OTHERS)
    for name in ("other", "looks"):
        found = (await hearth.invoke(name)).json
        assert (found["beside"], found["engine"]) == ("FileNotFoundError", "FileNotFoundError")
        assert found["code"] == ["main.py"]
        assert not any(found["folders"].values()), found["folders"]
        assert set(found["names"]) <= {"HEARTH_FUNCTION", "HEARTH_VERSION", "HEARTH_TENANT"}
