"""What a newcomer does in the first minute, and what they see."""

import asyncio
import io
import json

import pytest
from tests.support.platform import Client

pytestmark = [pytest.mark.platform, pytest.mark.docker]


async def test_a_function_answers_over_http(hearth: Client) -> None:
    """Given a deployed function, when it is called, then the answer, its job, its start and its trace come back."""
    deployed = await hearth.deploy("hello-http")
    assert deployed["version"] == 1
    answer = await hearth.invoke("hello-http", {"name": "ada"})
    assert (answer.status, answer.json) == (200, {"hello": "ada"})
    assert answer.headers["x-hearth-job"].startswith("hello-http-")
    assert answer.headers["x-hearth-start"] == "cold"
    assert answer.headers["traceparent"].startswith("00-")
    again = await hearth.invoke("hello-http", {"name": "bob"})
    assert again.json == {"hello": "bob"}


async def test_a_job_is_one_record_that_can_be_looked_up_and_replayed(hearth: Client) -> None:
    await hearth.deploy("hello-async")
    job = await hearth.submit("hello-async", {"name": "eve"})
    done = await hearth.final(job)
    assert (done["state"], done["result"], done["function"], done["attempts"]) == ("SUCCESS", {"hello": "eve"}, "hello-async", 1)
    assert done["usage"]["wall_ms"] > 0
    replayed = await hearth.call("POST", f"/v1/jobs/{job}/replay")
    assert replayed.status == 202
    assert (await hearth.final(replayed.json["job"]))["result"] == {"hello": "eve"}


async def test_a_stream_tells_states_logs_and_the_result(hearth: Client) -> None:
    source = "import time\n\ndef handle(event, context):\n    print('one', flush=True)\n    time.sleep(1.5)\n    print('two')\n    return 7\n"
    await hearth.deploy("streamed", source)
    events = []
    async with hearth.session.post(
        hearth.platform.url + "/v1/functions/streamed/invoke", json={}, headers={"Accept": "text/event-stream"}
    ) as answer:
        assert answer.status == 200
        started = asyncio.get_running_loop().time()
        kind = ""
        first_log = None
        async for raw in answer.content:
            line = raw.decode().rstrip("\n")
            if line.startswith("event:"):
                kind = line[6:].strip()
            elif line.startswith("data:"):
                events.append((kind, line[5:].strip()))
                if kind == "log" and first_log is None:
                    first_log = asyncio.get_running_loop().time() - started
    kinds = [kind for kind, _ in events]
    assert "log" in kinds and kinds[-1] == "result", events
    assert any("one" in text for kind, text in events if kind == "log")
    # What is printed is on screen within a second of being printed, while the function still runs.
    assert first_log is not None and first_log < 1.4


async def test_a_failing_function_says_where(hearth: Client) -> None:
    await hearth.deploy("failing", "def handle(event, context):\n    raise ValueError('no such thing')\n")
    answer = await hearth.invoke("failing")
    problem = answer.json
    assert (answer.status, problem["code"]) == (502, "E_FUNCTION_ERROR")
    assert "no such thing" in json.dumps(problem)
    assert "main.py" in json.dumps(problem) and "supervisor" not in json.dumps(problem)


async def test_a_function_is_a_plain_http_endpoint(hearth: Client) -> None:
    source = (
        "def handle(event, context):\n"
        "    return {'statusCode': 418, 'headers': {'x-tea': 'yes', 'content-type': 'text/plain'}, 'body': 'short and stout'}\n"
    )
    await hearth.deploy("teapot", source)
    answer = await hearth.call("GET", "/fn/teapot/any/path?x=1")
    assert (answer.status, answer.headers["x-tea"], answer.body) == (418, "yes", b"short and stout")


async def test_cancel_leaves_no_process(hearth: Client) -> None:
    """Given a call that would run for minutes, when it is cancelled, then it is final at once and its slot is free again."""
    await hearth.deploy("endless", "import time\n\ndef handle(event, context):\n    time.sleep(600)\n", timeout_s=0)
    job = await hearth.submit("endless")
    await hearth.until(lambda: _is(hearth, job, "PROCESSING"), 20, "never started")
    cancelled = await hearth.call("DELETE", f"/v1/jobs/{job}")
    assert cancelled.status in (200, 202, 204)
    done = await hearth.final(job, 10)
    assert (done["state"], done["reason"]) == ("FAILED", "cancelled")

    async def idle() -> bool:
        system = (await hearth.call("GET", "/v1/system")).json
        return all(executor["running"] == 0 for executor in system["executors"])

    await hearth.until(idle, 10, "a cancelled call still runs")


async def test_a_timeout_ends_what_ignores_it(hearth: Client) -> None:
    source = "import signal, time\n\ndef handle(event, context):\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(60)\n"
    await hearth.deploy("stubborn", source, timeout_s=1)
    started = asyncio.get_running_loop().time()
    answer = await hearth.invoke("stubborn")
    assert (answer.status, answer.json["code"]) == (504, "E_FUNCTION_TIMEOUT")
    assert asyncio.get_running_loop().time() - started < 1 + 1 + 1.5


async def test_isolation_is_what_it_says(hearth: Client) -> None:
    """`process`: a new process and clean globals each call; `reuse`: kept globals; `fresh`: a new sandbox each call."""
    source = (
        "import os\nseen = []\n\ndef handle(event, context):\n    seen.append(1)\n"
        "    return {'pid': os.getpid(), 'seen': len(seen), 'host': os.readlink('/proc/self/ns/pid')}\n"
    )
    for isolation in ("process", "reuse", "fresh"):
        await hearth.deploy(f"iso-{isolation}", source, isolation=isolation)
        answers = [await hearth.invoke(f"iso-{isolation}") for _ in range(4)]
        told = [answer.json for answer in answers]
        starts = [answer.headers["x-hearth-start"] for answer in answers]
        hosts = {one["host"] for one in told}
        if isolation == "process":
            assert len({(one["host"], one["pid"]) for one in told}) == 4, told
            assert {one["seen"] for one in told} == {1}
            assert starts[0] == "cold" and set(starts[1:]) == {"warm"}
        elif isolation == "reuse":
            assert [one["seen"] for one in told] == [1, 2, 3, 4], told
            assert len(hosts) == 1
        else:
            assert len(hosts) == 4, told
            assert set(starts) == {"cold"}


async def test_memory_is_told_per_call(hearth: Client) -> None:
    """A run that used 80 MB and then one that used 20 MB report 80 and 20, each over what the empty function uses."""
    source = "def handle(event, context):\n    block = bytearray(event['mb'] * 1000 * 1000)\n    block[::4096] = b'x' * len(block[::4096])\n    return len(block)\n"
    await hearth.deploy("hungry", source, memory_mb=256)
    peaks = {}
    for mb in (0, 80, 20):
        answer = await hearth.invoke("hungry", {"mb": mb})
        assert answer.status == 200, answer
        await hearth.until(lambda job=answer.headers["x-hearth-job"]: _is(hearth, job, "SUCCESS"), 10, "no record")
        peaks[mb] = (await hearth.job(answer.headers["x-hearth-job"]))["usage"]["memory_peak_mb"]
    assert abs(peaks[80] - peaks[0] - 80) <= 5, peaks
    assert abs(peaks[20] - peaks[0] - 20) <= 5, peaks


async def test_large_bodies_travel_both_ways(hearth: Client) -> None:
    """A body over the inline limit goes by reference, in and out, and comes back whole."""
    await hearth.deploy("mirror", "def handle(event, context):\n    return event\n", memory_mb=512)
    body = bytes(range(256)) * 4096 * 12  # 12 MiB
    answer = await hearth.call(
        "POST", "/v1/functions/mirror/invoke", data=io.BytesIO(body), headers={"Content-Type": "application/octet-stream"}
    )
    assert answer.status == 200
    assert answer.body == body


async def test_a_redeploy_under_load_fails_no_call(hearth: Client) -> None:
    def source(word: str) -> str:
        return f"def handle(event, context):\n    return {{'word': '{word}'}}\n"

    await hearth.deploy("changing", source("one"))
    stop = asyncio.Event()
    answers: list[tuple[float, int, object]] = []
    loop = asyncio.get_running_loop()

    async def caller() -> None:
        while not stop.is_set():
            began = loop.time()
            answer = await hearth.invoke("changing")
            answers.append((began, answer.status, answer.json["word"]))

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    await hearth.until(lambda: len(answers) > 20, 20, "no calls")
    assert (await hearth.deploy("changing", source("two")))["version"] == 2
    ready = loop.time()
    await hearth.until(lambda: sum(1 for began, *_ in answers if began > ready + 1) > 20, 30, "no calls after the redeploy")
    stop.set()
    await asyncio.gather(*callers)
    assert {status for _, status, _ in answers} == {200}
    assert {word for began, _, word in answers if began > ready + 1} == {"two"}


async def test_the_fleet_is_shown_whole(hearth: Client) -> None:
    """Also right after a start: a gateway that has just come up has heard of everybody within two seconds."""

    async def whole() -> bool:
        system = (await hearth.call("GET", "/v1/system")).json
        told = {one["service"] for one in system["processes"]}
        return {"gateway", "scheduler", "executor", "persister", "ai-proxy"} <= told and len(system["executors"]) == 3

    await hearth.until(whole, 2, "the fleet is not shown whole")
    system = (await hearth.call("GET", "/v1/system")).json
    for executor in system["executors"]:
        assert {"warm", "generic", "slots", "free"} <= set(executor)


async def _is(hearth: Client, job: str, state: str) -> bool:
    return (await hearth.job(job)).get("state") == state
