"""What a placed call costs the scheduler: CPU time of its process, read from the kernel, with an executor that does nothing.

python services/scheduler/benchmarks/cpu_per_call.py [calls] [in flight] [profile file]
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "broker"))

from scheduler_world import TENANT, World

from hearth_contracts import subjects
from hearth_contracts.calls import Body, Call
from hearth_contracts.enums import Lane
from hearth_kit.nats_bus import connect
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker

#: Longest wait for all answers.
PATIENCE_S = 120


def cpu_s(pid: int) -> float:
    """Time on a processor so far, to the nanosecond: the tick-based figures of `stat` err by a third."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


async def measure(calls: int, in_flight: int, profile: str) -> None:
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            async with contextlib.AsyncExitStack() as stack:
                bus = await stack.enter_async_context(connect(url=broker.url, instance="bench"))
                await provision(bus)
                world = World(bus, broker.url, stack)
                await world.start()
                command = ["-m", "hearth_scheduler"]
                if profile:
                    command = ["-m", "cProfile", "-o", profile, *command]
                process = subprocess.Popen(
                    [sys.executable, *command],
                    env=os.environ
                    | {"HEARTH_NATS_URL": broker.url, "HEARTH_INSTANCE": "scheduler-1", "HEARTH_LOG_LEVEL": "WARNING"},
                )
                try:
                    await world.executor("one", slots=8, room=64)
                    await world.deploy("hello")
                    await world.call("hello", within_s=20)
                    await asyncio.sleep(2.5)  # jobs from before it listened to records are looked up: not what is measured
                    for lane in (Lane.SYNC, Lane.ASYNC):
                        await load(world, process.pid, lane, min(calls, 500), in_flight)
                        used, took = await load(world, process.pid, lane, calls, in_flight)
                        print(
                            f"{lane.value}: {calls} calls, {in_flight} in flight, {calls / took:.0f}/s, "
                            f"{used / calls * 1e6:.0f} us of scheduler CPU per call"
                        )
                    before, began = cpu_s(process.pid), time.monotonic()
                    await asyncio.sleep(5)
                    print(f"idle: {(cpu_s(process.pid) - before) / (time.monotonic() - began) * 100:.1f} % of a core")
                finally:
                    process.terminate()
                    process.wait(10)
        finally:
            broker.stop()


async def load(world: World, pid: int, lane: Lane, calls: int, in_flight: int) -> tuple[float, float]:
    """CPU seconds of the scheduler, and seconds on the clock."""
    before, began = cpu_s(pid), time.monotonic()
    ended = 0
    done = asyncio.Event()
    gate = asyncio.Semaphore(in_flight)

    def heard(_: object) -> None:
        nonlocal ended
        ended += 1
        gate.release()
        if ended >= calls:
            done.set()

    subscription = await world.bus.subscribe(subjects.RECORDS_ALL, heard)
    build = subjects.call if lane is Lane.SYNC else subjects.job
    for _ in range(calls):
        await gate.acquire()
        call: Call = world.new_call("hello", b"x" * 256, tenant=TENANT, lane=lane).model_copy(update={"input": Body(size=256)})
        headers = {
            "Hearth-Meta": call.model_dump_json(exclude_defaults=True),
            "Hearth-Contract": "call.v1",
            "Nats-Msg-Id": call.job,
        }
        headers["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
        world.bus.send(build(TENANT, "hello"), b"x" * 256, headers=headers)
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
    await subscription.stop()
    world.replies.clear()
    world.ran.clear()
    return cpu_s(pid) - before, time.monotonic() - began


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:3]]
    chosen = [*numbers, *(5000, 64)[len(numbers) :]]
    uvloop.run(measure(chosen[0], chosen[1], sys.argv[3] if len(sys.argv) > 3 else ""))
