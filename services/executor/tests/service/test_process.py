"""The executor as it is started: a process of its own, real containers, a run in, an answer out, a stop."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from placing import GATEWAY, TENANT, Running, until

from hearth_cli.local import images
from hearth_cli.local.engine_api import EngineApi
from hearth_contracts import functions, names, streams, subjects
from hearth_contracts.calls import Body, Reply
from hearth_contracts.enums import Lane, OutcomeKind, Reason, Start, State
from hearth_contracts.fleet import Capacity
from hearth_contracts.functions import CodeRef, FunctionHead, FunctionSpec, FunctionVersion
from hearth_kit.message import Message
from hearth_kit.nats_bus import NatsBus
from hearth_kit.objects import Objects

pytestmark = [pytest.mark.broker, pytest.mark.docker, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[4]
SOURCE = """
import os, time

def handle(event, context):
    print("for", event.get("name"))
    if event.get("sleep"):
        time.sleep(event["sleep"])
    if event.get("fail"):
        raise ValueError("as asked")
    pad = "y" * event.get("grow", 0)
    return {"hello": event.get("name"), "job": context.job_id, "size": len(event.get("pad", "")), "pad": pad}
"""


@pytest.fixture(scope="session")
def image() -> str:
    return images.build(ROOT, ROOT / ".hearth" / "cache" / "images", lambda step: None).reference


class Process(Running):
    """The executor's process, with the scheduler's and the gateway's hands on the bus."""

    def __init__(self, *, bus: NatsBus, url: str, image: str, folder: Path) -> None:
        self.bus = bus
        self.boot = names.new_boot()
        self.id = f"executor-1-{self.boot}"
        self.epoch = 1
        self.replies: list[tuple[Reply, bytes]] = []
        self.replied_at: dict[str, float] = {}
        self.capacity: list[Capacity] = []
        self.heard: list[str] = []
        self._url = url
        self._image = image
        self._log = folder / f"{self.id}.log"
        self.process: asyncio.subprocess.Process

    async def start(self, **environment: str) -> None:
        def hear(message: Message) -> None:
            self.heard.append(message.subject)
            if message.subject.startswith("hearth.v1.replies."):
                reply = message.meta(Reply)
                self.replied_at[reply.job] = time.perf_counter()
                self.replies.append((reply, message.body))
            elif message.subject == subjects.capacity(self.id):
                self.capacity.append(message.meta(Capacity))

        await self.bus.subscribe("hearth.v1.>", hear)
        told = {
            "HEARTH_NATS_URL": self._url, "HEARTH_INSTANCE": "executor-1", "HEARTH_BOOT": self.boot,
            "HEARTH_PLATFORM": f"test-{secrets.token_hex(4)}", "HEARTH_SLOTS": "4", "HEARTH_GENERIC": "python/128=2",
            "HEARTH_IMAGES": f"python={self._image}", "HEARTH_MEMORY_MB": "2048",
        } | environment  # fmt: skip
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hearth_executor", env={**os.environ, **told}, stderr=log
            )
        await until(lambda: self.capacity or self.process.returncode, within_s=60)
        assert self.process.returncode is None, self._log.read_text()
        await self.consumers()
        await until(lambda: b'"ready"' in self._log.read_bytes() or None)

    async def deploy(self, name: str, version: int = 1, **spec: Any) -> FunctionVersion:
        code = SOURCE.encode() + f"# {secrets.token_hex(8)}\n".encode()
        made = FunctionVersion(
            tenant=TENANT, function=name, version=version, digest=secrets.token_hex(32), spec=FunctionSpec(name=name, **spec),
            code=CodeRef(object=f"code-{secrets.token_hex(8)}", kind="file", filename="main.py", size=len(code), sha256="0" * 64),
            created_at=time.time(),
        )  # fmt: skip
        await Objects(self.bus).put("code", made.code.object, code)
        head = FunctionHead(tenant=TENANT, function=name, current=version, versions=(version,), updated_at=time.time())
        await self.bus.publish(f"$KV.FUNCTIONS.{made.key}", made.model_dump_json().encode())
        await self.bus.publish(f"$KV.FUNCTIONS.{functions.registry_key(TENANT, name)}", head.model_dump_json().encode())
        return made

    async def settled(self, *, within_s: float = 10.0) -> None:
        async def look() -> bool:
            return not await self.left("RUNS") and not await self.left("RUNS_SYNC")

        await until(look, within_s=within_s)


@pytest.fixture
async def process(broker, bus, image, tmp_path) -> AsyncIterator[Process]:
    it = Process(bus=bus, url=broker.url, image=image, folder=tmp_path)
    yield it
    if it.process.returncode is None:
        it.process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(it.process.wait(), 40)
    if it.process.returncode is None:
        it.process.kill()
        await it.process.wait()
    api, quiet = EngineApi(), 0
    while quiet < 3:  # the engine may still be at a container that a killed executor had asked for
        containers = api.containers([f"hearth.boot={it.boot}"])
        for container in containers:
            api.remove_container(container["Id"])
        quiet = 0 if containers else quiet + 1
        await asyncio.sleep(0.3)


async def test_a_call_runs_in_a_container_and_a_stop_leaves_nothing(process):
    await process.start()
    await process.deploy("hello")
    first = process.call("hello", b'{"name":"ada"}')
    await process.place(first, b'{"name":"ada"}')
    reply, body = await process.reply(first, within_s=60)
    record, content = await process.record(first)
    assert reply.ending.state is State.SUCCESS, reply.ending.failure
    assert json.loads(body) == {"hello": "ada", "job": first.job, "size": 0, "pad": ""}
    assert (reply.ending.start, record.ending.executor) == (Start.COLD, process.id)
    assert record.parts(content)[2] == b"for ada\n"
    assert set(record.ending.timings.cold_ms) >= {"code", "import"}

    await process.place(again := process.call("hello", b'{"name":"bob"}'), b'{"name":"bob"}')
    reply, body = await process.reply(again)
    assert (reply.ending.start, json.loads(body)["hello"]) == (Start.WARM, "bob")

    await process.place(failing := process.call("hello", b'{"fail":1}', lane=Lane.ASYNC), b'{"fail":1}', is_last=False)
    outcome, body = await process.outcome(failing)
    assert (outcome.kind, outcome.ending.reason, body) == (OutcomeKind.FAILED, Reason.ERROR, b'{"fail":1}')
    assert outcome.ending.failure.type == "ValueError"
    assert "as asked" in outcome.ending.failure.traceback

    report = await until(lambda: process.capacity[-1] if process.capacity[-1].warm else None)
    assert report.assigned == {"acme.hello.1": 1}
    assert report.runtimes == ("python",)
    assert report.backend_notes["link"]
    await process.settled()

    process.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.process.wait(), 40) == 0
    assert EngineApi().containers([f"hearth.boot={process.boot}"]) == []


async def test_large_bodies_go_through_a_container_both_ways(process):
    await process.start()
    await process.deploy("hello")
    event = json.dumps({"name": "big", "pad": "x" * 3_000_000, "grow": 2_000_000}).encode()
    await Objects(process.bus).put("bodies", f"input-{process.boot}", event)
    call = process.call("hello", input=Body(size=len(event), object=f"input-{process.boot}"))
    await process.place(call, b"")
    record, _ = await process.record(call, within_s=60)
    assert record.ending.state is State.SUCCESS, record.ending.failure
    stored = json.loads(await Objects(process.bus).get("bodies", record.ending.result.object))
    assert (stored["size"], len(stored["pad"])) == (3_000_000, 2_000_000)


async def test_a_stop_hands_back_a_long_call_and_a_cancel_leaves_no_process(process):
    await process.start(HEARTH_DRAIN_S_MAX="1")
    await process.deploy("hello", timeout_s=0)
    cancelled, long = (process.call("hello", b'{"sleep":600}', lane=Lane.ASYNC) for _ in range(2))
    for call in (cancelled, long):
        await process.place(call, b'{"sleep":600}', is_last=False)
        await until(lambda job=call.job: subjects.state(TENANT, job) in process.heard, within_s=60)
    await until(lambda: process.capacity[-1].running == 2 or None, within_s=30)
    assert (await process.control("cancel", cancelled.job)).done
    record, _ = await process.record(cancelled, within_s=15)
    assert record.ending.reason is Reason.CANCELLED
    process.process.send_signal(signal.SIGTERM)
    outcome, _ = await process.outcome(long, within_s=20)
    assert (outcome.kind, outcome.run.call.attempt) == (OutcomeKind.HANDED_BACK, 1)
    assert await asyncio.wait_for(process.process.wait(), 40) == 0
    await process.settled()


@pytest.mark.parametrize(
    ("failpoint", "replied", "recorded"),
    [
        ("exec.after_accept", False, False),
        ("exec.after_exit", False, False),
        ("exec.after_reply", True, False),
        ("exec.before_ack", True, True),
    ],
)
async def test_a_crash_at_each_step_leaves_the_run_to_be_found(process, failpoint, replied, recorded):
    """Whatever the step, the run is still in its stream: nobody has acknowledged what is not recorded."""
    await process.start(HEARTH_FAILPOINT=failpoint)
    await process.deploy("hello")
    await process.place(call := process.call("hello"))
    assert await asyncio.wait_for(process.process.wait(), 60) == -signal.SIGKILL
    assert await process.left("RUNS_SYNC") == 1
    stored = await process.bus.get_last("REPLIES", subjects.reply(GATEWAY, call.job))
    assert (stored is not None) is replied
    assert (await process.stored_record(call) is not None) is recorded


async def test_an_executor_that_was_given_up_ends_so_that_it_is_started_anew(process):
    await process.start()
    await process.deploy("hello")
    await process.place(call := process.call("hello", b'{"sleep":600}', lane=Lane.ASYNC), b'{"sleep":600}')
    await until(lambda: subjects.state(TENANT, call.job) in process.heard, within_s=60)
    for stream in ("RUNS", "RUNS_SYNC"):
        await process.bus.delete_consumer(stream, streams.executor_consumer(process.id))
    assert await asyncio.wait_for(process.process.wait(), 30) == 75
    assert EngineApi().containers([f"hearth.boot={process.boot}"]) == []
    assert await process.stored_record(call) is None


async def test_a_process_that_stood_still_and_was_given_up_says_nothing_when_it_wakes(process):
    """Its function ends while it stands still: the first thing it reads is the result, and nobody may hear of it."""
    await process.start(HEARTH_SILENCE_S_MAX="1")
    await process.deploy("hello")
    await process.place(warming := process.call("hello", lane=Lane.ASYNC))
    await process.record(warming, within_s=60)
    await process.place(call := process.call("hello", b'{"sleep":1}'), b'{"sleep":1}')
    await until(lambda: subjects.state(TENANT, call.job) in process.heard, within_s=60)
    process.process.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    for stream in ("RUNS", "RUNS_SYNC"):
        await process.bus.delete_consumer(stream, streams.executor_consumer(process.id))
    await until(lambda: time.monotonic() - stopped_at > 2.5 or None)  # real time: only that makes a process late
    process.process.send_signal(signal.SIGCONT)
    assert await asyncio.wait_for(process.process.wait(), 30) == 75
    assert await process.stored_record(call) is None
    assert not process.replies
