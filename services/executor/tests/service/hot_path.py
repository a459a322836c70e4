"""What a call costs this service: processor time per call, without a sandbox.

    .venv/bin/python services/executor/tests/service/hot_path.py [calls] [in flight] [sync|async]

The executor is a process of its own whose functions return at once; the broker is real; this process places the runs and
waits for their ends. `HOT_PATH_PROFILE=FILE` says where the executor's time went.
"""

import asyncio
import collections
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

import uvloop
from in_process import Calling
from placing import TENANT, Running, executor, until

from hearth_contracts import subjects
from hearth_contracts.calls import Run
from hearth_contracts.enums import Lane
from hearth_kit.message import Message
from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker

ID: Final = "executor-1-0a1b2c3d"
EVENT: Final = b'{"name":"ada"}'
WARMING_CALLS: Final = 500


async def echo(calling: Calling) -> bytes:
    return await calling.body()


async def serve(url: str) -> None:
    """The executor's process, until it is killed."""
    async with (
        connect(url=url, instance=ID) as own,
        connect(url=url, instance="helper") as others,
        executor(own, others=others, functions={"echo": echo}, slots=16) as it,
    ):
        await it.deafen()
        await it.deploy("echo", timeout_s=0)
        if profile := os.environ.get("HOT_PATH_PROFILE"):
            _sample(Path(profile))
        print("up", flush=True)
        await asyncio.Event().wait()


def _sample(path: Path) -> None:
    """Look where the processor is each tick of it, and write that down when told to end."""
    own: collections.Counter[str] = collections.Counter()
    whole: collections.Counter[str] = collections.Counter()

    def look(_: int, frame: FrameType | None) -> None:
        at, seen = frame, set[str]()
        while at is not None:
            name = f"{at.f_code.co_filename.rsplit('/', 1)[-1]}:{at.f_code.co_name}"
            if at is frame:
                own[f"{name}:{at.f_lineno}"] += 1
            if name not in seen:
                seen.add(name)
                whole[name] += 1
            at = at.f_back

    def tell() -> None:
        total = sum(own.values()) or 1
        lines = [f"{total} samples"]
        for title, counter in (("itself", own), ("with what it calls", whole)):
            lines += ["", title, *(f"{count / total:6.1%}  {name}" for name, count in counter.most_common(60))]
        path.write_text("\n".join(lines) + "\n")
        os._exit(0)

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, tell)


def _processor_s(pid: int) -> tuple[float, float]:
    """User and system seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


class Load:
    """Clients that place one run after another, each waiting for its end."""

    def __init__(self, bus: NatsBus, lane: Lane) -> None:
        self._bus = bus
        self._lane = lane
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._left = 0
        self.took_s: list[float] = []

    async def listen(self) -> None:
        area = "replies.gateway-1.*" if self._lane is Lane.SYNC else f"records.{TENANT}.>"
        await self._bus.subscribe(f"hearth.v1.{area}", self._heard)

    def _heard(self, message: Message) -> None:
        waiter = self._waiting.pop(message.subject.rsplit(".", 1)[1], None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def run(self, calls: int, flight: int) -> float:
        """Wall seconds until the last answer; then waits until every run is acknowledged."""
        self._left = calls
        self.took_s.clear()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(flight):
                clients.create_task(self._client())
        elapsed = time.perf_counter() - began
        await until(self._settled, within_s=30)
        return elapsed

    async def _client(self) -> None:
        while self._left > 0:
            self._left -= 1
            call = Running.call(self, "echo", EVENT, lane=self._lane)  # type: ignore[arg-type]
            waiter = self._waiting[call.job] = asyncio.get_running_loop().create_future()
            run = Run(call=call, executor=ID, placement=0, epoch=1, is_last=True, placed_at=time.time(), reason="free")
            began = time.perf_counter()
            await self._bus.publish(
                subjects.run(ID, call.job, sync=self._lane is Lane.SYNC), EVENT, meta=run, contract="run.v1",
                msg_id=f"{call.job}.1.0",
            )  # fmt: skip
            await waiter
            self.took_s.append(time.perf_counter() - began)

    async def _settled(self) -> bool:
        info = await self._bus.stream_info("RUNS_SYNC" if self._lane is Lane.SYNC else "RUNS")
        return info is not None and info.messages == 0


async def measure(url: str, calls: int, flight: int, lane: Lane) -> None:
    async with connect(url=url, instance="boot") as bus:
        await provision(bus)
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", url, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        while b"up" not in await process.stdout.readline():
            pass
        async with connect(url=url, instance="gateway-1") as bus:
            load = Load(bus, lane)
            await load.listen()
            await load.run(WARMING_CALLS, flight)
            before = _processor_s(process.pid)
            elapsed_s = await load.run(calls, flight)
            user, system = (after - was for after, was in zip(_processor_s(process.pid), before, strict=True))
        took = sorted(load.took_s)
        print(
            f"{lane}, {calls} calls, {flight} in flight: {user / calls * 1e3:.3f} ms user and {system / calls * 1e3:.3f} ms "
            f"system a call, {calls / elapsed_s:.0f} calls/s, p50 {took[len(took) // 2] * 1e3:.2f} ms, "
            f"p99 {took[int(len(took) * 0.99)] * 1e3:.2f} ms"
        )
    finally:
        process.terminate() if os.environ.get("HOT_PATH_PROFILE") else process.kill()
        await process.wait()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        uvloop.run(serve(sys.argv[2]))
        return
    words = [*sys.argv[1:], *["5000", "32", "sync"][len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            uvloop.run(measure(broker.url, int(words[0]), int(words[1]), Lane(words[2])))
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
