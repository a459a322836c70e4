"""Schedulers, executors and persisters as processes on a broker of their own. The test is the gateway: it publishes calls
and jobs, hears replies, and knows how often each job ran."""

import asyncio
import collections
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler_world import World

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import Call, Dead, Record
from hearth_contracts.enums import Lane, State
from hearth_kit.nats_bus import connect
from hearth_kit.objects import Objects
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker

PROGRAM = Path(__file__).with_name("executor_process.py")
#: Short waits: a silent executor is dead after a second, and what it held is delivered again after two.
DEAD_AFTER_S, ACK_WAIT_S = 1.5, 2.0
SCHEDULER = {
    "HEARTH_DEAD_AFTER_S": str(DEAD_AFTER_S), "HEARTH_SUSPECT_AFTER_S": "1.0", "HEARTH_ACK_WAIT_S": str(ACK_WAIT_S),
    "HEARTH_SWEEP_S": "1", "HEARTH_LOSSES_MAX": "0",
}  # fmt: skip


class NotTakenIn(AssertionError):
    """An executor was not taken in by a scheduler."""


@dataclass(eq=False)
class Executor:
    """One process, and the life it is in."""

    id: str
    process: "subprocess.Popen[bytes]"

    @property
    def dead(self) -> bool:
        return self.process.poll() is not None


class SmallPlatform(World):
    """`await executor(...)` and `scheduler(...)` start processes; all end with the platform."""

    folder: Path
    processes: "list[subprocess.Popen[bytes]]"

    def spawn(self, *command: str, instance: str, **environment: str) -> "subprocess.Popen[bytes]":
        told = {"HEARTH_NATS_URL": self.url, "HEARTH_INSTANCE": instance, "HEARTH_LOG_LEVEL": "INFO"} | environment
        with (self.folder / f"{instance}.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, *command], env=os.environ | told, stderr=log)
        self.processes.append(process)
        return process

    def scheduler(self, instance: str = "scheduler-1", **environment: str) -> "subprocess.Popen[bytes]":
        return self.spawn("-m", "hearth_scheduler", instance=instance, **SCHEDULER | environment)

    def persister(self, *, stores: dict[str, Path], **environment: str) -> "subprocess.Popen[bytes]":
        folders = ",".join(f"{name}={path}" for name, path in stores.items())
        told = {
            "HEARTH_STORE_FOLDERS": folders, "HEARTH_SEGMENT_AGE_S": "0.1", "HEARTH_SEGMENT_MARGIN_S": "0.1",
            "HEARTH_DATA_DIR": str(self.folder / "persister"),
        }  # fmt: skip
        return self.spawn("-m", "hearth_persister", instance="persister-1", **told | environment)

    async def running(
        self, name: str, *, slots: int = 1, failpoint: str = "", without: tuple[str, ...] = (), **environment: str
    ) -> Executor:
        """An executor that the scheduler has taken in."""
        boot = names.new_boot()
        told = {
            "HEARTH_BOOT": boot, "HEARTH_SLOTS": str(slots), "HEARTH_FAILPOINT": failpoint, "HEARTH_HEARTBEAT_S": "0.3",
            "HEARTH_SILENCE_S_MAX": "1.2", "HEARTH_TRACES_PER_SECOND": "0",
        } | environment  # fmt: skip
        process = self.spawn(str(PROGRAM), str(self.folder), *without, instance=name, **told)
        executor = Executor(f"{name}-{boot}", process)
        consumer = streams.executor_consumer(executor.id)
        try:
            async with asyncio.timeout(15):
                while await self.bus.consumer_info("RUNS_SYNC", consumer) is None:
                    if executor.dead:
                        raise NotTakenIn(executor.id)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            process.kill()
            raise NotTakenIn(executor.id) from None
        return executor

    @contextlib.asynccontextmanager
    async def kept(self, count: int, **words: Any) -> AsyncIterator[list[Executor]]:
        """So many executors: whichever ends is started anew, as the supervisor of a real platform does."""
        living = list(await asyncio.gather(*(self.running(f"executor-{number}", **words) for number in range(count))))

        async def keep(number: int) -> None:
            while True:
                await asyncio.sleep(0.02)
                if living[number].dead:
                    with contextlib.suppress(NotTakenIn):  # a busy machine: it was given up while it started, and is tried again
                        living[number] = await self.running(f"executor-{number}", **words)

        keeping = [asyncio.create_task(keep(number)) for number in range(count)]
        try:
            yield living
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    async def deploy_work(self, **spec: Any) -> None:
        await Objects(self.bus).put("code", "o", b"in this process")
        await self.deploy("work", **{"scale": {"max": 1000}} | spec)

    async def submit(self, lane: Lane, **event: Any) -> Call:
        body = json.dumps(event).encode()
        if lane is Lane.ASYNC:
            return await self._job(body)
        call = self.new_call("work", body, tenant="acme", lane=lane)
        await self.publish(call, body)
        return call

    def started(self, *calls: Call) -> bool:
        """Whether each runs, or has."""
        runs = self.runs()
        return all(runs[call.job] for call in calls)

    async def _job(self, body: bytes) -> Call:
        job = await self.job("work", body)
        return self.new_call("work", body, tenant="acme", lane=Lane.ASYNC).model_copy(update={"job": job})

    def ran_by(self) -> dict[str, list[int]]:
        """The processes that ran each job."""
        ran: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
        path = self.folder / "attempts"
        for line in path.read_text().splitlines() if path.exists() else ():
            job, _, pid = line.split()
            ran[job].append(int(pid))
        return ran

    def runs(self) -> collections.Counter[str]:
        """How often each job ran."""
        return collections.Counter({job: len(pids) for job, pids in self.ran_by().items()})

    def ran_in(self, process: "subprocess.Popen[bytes]") -> list[str]:
        """The jobs that this process ran."""
        return [job for job, pids in self.ran_by().items() if process.pid in pids]

    async def recorded(self, call: Call, *, within_s: float = 20) -> tuple[Record, bytes]:
        """The job's final, and the result inside it."""
        await self.ended(call.job, within_s=within_s)
        stored = await self.bus.get_last("RECORDS", subjects.record("acme", call.job))
        assert stored is not None
        record = stored.message.meta(Record)
        return record, record.parts(stored.message.body)[1]

    async def dead_letters(self) -> list[Dead]:
        found: list[Dead] = []
        sequence = 1
        while (stored := await self.bus.get_next("DEAD", subjects.DEAD_ALL, sequence)) is not None:
            found.append(stored.message.meta(Dead))
            sequence = stored.sequence + 1
        return found

    async def drained(self) -> None:
        await self.empty("JOBS", "CALLS", "RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC")

    async def check(self, calls: list[Call], *, state: State | None = State.SUCCESS) -> None:
        """Nothing lost, nothing recorded twice, every sync caller told what is recorded."""
        for call in calls:
            record, result = await self.recorded(call, within_s=30)
            assert state is None or record.ending.state is state, (call.job, record.ending)
            if call.lane is Lane.SYNC:
                assert (await self.answer(call.job)).body == result
                assert {answer.body for answer in self.replies[call.job]} == {result}
        await self.drained()
        counts = await self.records()
        assert {counts[call.job] for call in calls} == {1}


@contextlib.asynccontextmanager
async def small_platform(broker: Broker, folder: Path) -> AsyncIterator[SmallPlatform]:
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(url=broker.url, instance="gateway-1"))
        await provision(bus)
        platform = SmallPlatform(bus, broker.url, stack)
        platform.folder, platform.processes = folder, []
        await platform.start()
        try:
            yield platform
        finally:
            for process in platform.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
