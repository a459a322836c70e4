"""What a call costs this service: processor time per call, without a sandbox.

    .venv/bin/python services/executor/tests/service/hot_path.py [calls] [in flight] [sync|async]

The executor is a process of its own with functions that return at once; a real broker; the other process places the runs
and waits for the records. `--profile FILE` writes the executor's profile.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import uvloop
from in_process import Calling
from placing import TENANT, executor, until

from hearth_contracts.calls import Reply
from hearth_contracts.enums import Lane
from hearth_kit.nats_bus import connect
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker

ID = "executor-1-0a1b2c3d"


async def echo(calling: Calling) -> bytes:
    return calling.invocation.body  # type: ignore[return-value]


async def serve(url: str) -> None:
    """The executor's process, until it is killed."""
    async with connect(url=url, instance=ID) as own, connect(url=url, instance="helper") as others:
        profile = os.environ.get("HOT_PATH_PROFILE")
        async with executor(own, others=others, functions={"echo": echo}, slots=16) as it:
            # What the helper hears costs this process; stop it.
            for sid in list(others._wire._direct):
                if others._wire._subs[sid].subject == "hearth.v1.>":
                    await others._wire.unlisten(sid)
            await it.deploy("echo", timeout_s=0)
            if os.environ.get("HOT_PATH_GC"):
                import gc
                gc.collect()
                gc.freeze()
                gc.set_threshold(int(os.environ["HOT_PATH_GC"]), 20, 50)
            print("up", flush=True)
            if profile:
                _sample(profile, float(os.environ.get("HOT_PATH_SECONDS", "8")))
            await asyncio.Event().wait()


def _sample(path: str, seconds: float) -> None:
    """Where the processor is, a thousand times a second of it: cheap enough not to bend what it measures."""
    import collections
    import signal

    own: collections.Counter[str] = collections.Counter()
    whole: collections.Counter[str] = collections.Counter()

    def look(_: int, frame) -> None:
        seen = set()
        at = frame
        while at is not None:
            code = at.f_code
            name = f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_name}"
            if at is frame:
                own[f"{name}:{at.f_lineno}"] += 1
            if name not in seen:
                seen.add(name)
                whole[name] += 1
            at = at.f_back

    def tell() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        total = sum(own.values())
        lines = [f"{total} samples"]
        for title, counter in (("own", own), ("with what it calls", whole)):
            lines += ["", title, *(f"{count / total:6.1%}  {name}" for name, count in counter.most_common(60))]
        Path(path).write_text("\n".join(lines))

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    asyncio.get_running_loop().call_later(seconds, tell)


def cpu_s(pid: int) -> tuple[float, float]:
    """User and system seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


async def place(url: str, pid: int, calls: int, flight: int, lane: Lane) -> None:
    from hearth_contracts import streams, subjects
    from hearth_contracts.calls import Run

    async with connect(url=url, instance="gateway-1") as bus:
        done: dict[str, asyncio.Future[None]] = {}
        area = "replies.gateway-1.*" if lane is Lane.SYNC else f"records.{TENANT}.>"

        def heard(message) -> None:
            waiter = done.pop(message.subject.rsplit(".", 1)[1], None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

        await bus.subscribe(f"hearth.v1.{area}", heard)
        loop = asyncio.get_running_loop()
        took: list[float] = []
        left = calls

        async def client(maker) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                call = maker.call("echo", b'{"name":"ada"}', lane=lane)
                done[call.job] = waiter = loop.create_future()
                began = time.perf_counter()
                run = Run(call=call, executor=ID, placement=0, epoch=1, is_last=True, placed_at=time.time(), reason="free")
                await bus.publish(subjects.run(ID, call.job, sync=lane is Lane.SYNC), b'{"name":"ada"}', meta=run,
                    contract="run.v1", msg_id=f"{call.job}.1.0")  # fmt: skip
                await waiter
                took.append(time.perf_counter() - began)

        class Maker:
            from placing import Running

            call = Running.call

        async def settled() -> bool:
            info = await bus.stream_info("RUNS_SYNC" if lane is Lane.SYNC else "RUNS")
            return info.messages == 0

        left = 200
        await asyncio.gather(*(client(Maker()) for _ in range(flight)))
        await until(settled)
        took.clear()
        left = calls
        before, began = cpu_s(pid), time.perf_counter()
        await asyncio.gather(*(client(Maker()) for _ in range(flight)))
        elapsed = time.perf_counter() - began
        await until(settled)
        user, system = (after - was for after, was in zip(cpu_s(pid), before, strict=True))
        took.sort()
        print(
            f"{lane} {calls} calls, {flight} in flight: {user / calls * 1e3:.3f} ms user and {system / calls * 1e3:.3f} ms system a call, "
            f"{calls / elapsed:.0f} calls/s, p50 {took[len(took) // 2] * 1e3:.2f} ms, p99 {took[int(len(took) * 0.99)] * 1e3:.2f} ms"
        )


async def measure(url: str, calls: int, flight: int, lane: Lane) -> None:
    async with connect(url=url, instance="boot") as bus:
        await provision(bus)
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", url, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        while b"up" not in await process.stdout.readline():
            pass
        await place(url, process.pid, calls, flight, lane)
        if os.environ.get("HOT_PATH_PROFILE"):
            await asyncio.sleep(float(os.environ.get("HOT_PATH_SECONDS", "8")))
    finally:
        process.kill()
        await process.wait()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        uvloop.run(serve(sys.argv[2]))
        return
    numbers = [int(word) for word in sys.argv[1:3]]
    calls, flight = (numbers + [5000, 32][len(numbers) :])[:2]
    lane = Lane(sys.argv[3]) if len(sys.argv) > 3 else Lane.SYNC
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            uvloop.run(measure(broker.url, calls, flight, lane))
        finally:
            broker.stop()


_ = Reply
if __name__ == "__main__":
    main()
