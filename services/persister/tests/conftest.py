"""A real broker, real folders, and the persister as the process that it is."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import Body, Ending, Failure, Record, Timings, Usage
from hearth_contracts.enums import Lane, Reason, State
from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.objects import Objects
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker
from hearth_persister import reading


@dataclass
class Published:
    """A record and what it was published with."""

    record: Record
    body: bytes
    sequence: int


class Records:
    """Publishes finals as executors do."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self.published: dict[str, Published] = {}

    def make(
        self,
        *,
        function: str = "hello",
        tenant: str = "default",
        state: State = State.SUCCESS,
        at: float | None = None,
        given: bytes = b'{"name":"ada"}',
        result: bytes = b'"hello ada"',
        log: bytes = b"",
        large: dict[str, str] | None = None,
        persist: bool = True,
        job: str = "",
    ) -> tuple[Record, bytes]:
        """`large`: object ids by part, whose bodies are then not inline."""
        large = large or {}
        at = time.time() if at is None else at
        described = {
            part: Body(size=len(content), object=large.get(part, ""))
            for part, content in (("input", given), ("result", result), ("log", log))
        }
        failed = state == State.FAILED
        record = Record(
            job=job or names.new_job(function, at),
            tenant=tenant,
            function=function,
            version=1,
            lane=Lane.ASYNC,
            ending=Ending(
                state=state,
                reason=Reason.ERROR if failed else None,
                failure=Failure(type="ValueError", message='é\n"no"') if failed else None,
                result=described["result"],
                usage=Usage(wall_ms=1.5, cpu_ms=0.5, memory_peak_mb=20),
                timings=Timings(submitted_at=at, placed_at=at, started_at=at, finished_at=at + 0.0015),
                executor="executor-1-0badcafe",
            ),
            input=described["input"],
            log=described["log"],
            persist=persist,
            trace_id="0af7651916cd43dd8448eb211c80319c",
            recorded_at=at,
        )
        parts = {"input": given, "result": result, "log": log}
        return record, b"".join(content for part, content in parts.items() if part not in large)

    async def publish(self, record: Record, body: bytes, *, traceparent: str = "", msg_id: str = "") -> Published:
        ack = await self._bus.publish(
            subjects.record(record.tenant, record.job), body, meta=record, contract="record.v1",
            msg_id=msg_id or f"{record.job}.r", traceparent=traceparent, expect_last=0,
        )  # fmt: skip
        assert not ack.duplicate
        published = Published(record, body, ack.sequence)
        self.published[record.job] = published
        return published

    async def one(self, **words: object) -> Published:
        return await self.publish(*self.make(**words))  # type: ignore[arg-type]

    async def many(self, count: int, *, at_once: int = 128, **words: object) -> None:
        slots = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with slots:
                await self.one(result=f'{{"n":{number}}}'.encode(), **words)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    async def large(self, size: int, **words: object) -> tuple[Published, bytes]:
        """A record whose result is an object of this size."""
        content = os.urandom(size)
        object_id = f"o{os.urandom(8).hex()}"
        await Objects(self._bus).put("bodies", object_id, content)
        published = await self.one(result=content, large={"result": object_id}, **words)
        return published, content


@pytest.fixture
def records(bus: NatsBus) -> Records:
    return Records(bus)


@dataclass
class Process:
    """One persister."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, object]] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _reader: "asyncio.Task[None] | None" = None

    async def read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line.decode()})
            if self.lines[-1].get("event") == "ready":
                self._ready.set()

    async def ready(self) -> None:
        await asyncio.wait_for(self._ready.wait(), 20)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        code = await asyncio.wait_for(self.process.wait(), 30)
        if self._reader is not None:
            await self._reader
        return code

    def said(self, event: str) -> bool:
        return any(event in str(line.get("event")) for line in self.lines)

    @property
    def memory_mib(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmHWM")

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Platform:
    """Starts persisters with settings short enough for tests."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.processes: list[Process] = []

    def store(self, name: str) -> Path:
        return self.folder / f"store-{name}"

    def environment(self, instance: str, stores: tuple[str, ...]) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HEARTH_NATS_URL": self.broker.url,
            "HEARTH_INSTANCE": instance,
            "HEARTH_DATA_DIR": str(self.folder / "data"),
            "HEARTH_STORE_FOLDERS": ",".join(f"{name}={self.store(name)}" for name in stores),
            "HEARTH_SEGMENT_AGE_S": "0.1",
            "HEARTH_SEGMENT_MARGIN_S": "0.1",
            "HEARTH_STORE_ACK_WAIT_S": "2",
            "HEARTH_STORE_RETRY_S": "0.1",
            "HEARTH_STORE_RETRY_S_MAX": "0.5",
            "HEARTH_RETENTION_EVERY_S": "0.2",
        }

    async def start(
        self, *stores: str, instance: str = "persister-1", env: dict[str, str] | None = None, ready: bool = True
    ) -> Process:
        process = Process(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hearth_persister", stderr=asyncio.subprocess.PIPE, limit=2**20,
                env={**self.environment(instance, stores or ("local",)), **(env or {})},
            )
        )  # fmt: skip
        process._reader = asyncio.get_running_loop().create_task(process.read())
        self.processes.append(process)
        if ready:
            await process.ready()
        return process

    async def end(self) -> None:
        for process in self.processes:
            if process.process.returncode is None:
                process.thaw()
                process.kill()
                await process.ended()


@pytest.fixture
async def platform(bus: NatsBus, broker: Broker, tmp_path: Path) -> AsyncIterator[Platform]:
    platform = Platform(broker, tmp_path)
    yield platform
    await platform.end()


async def until(condition: Callable[[], object], *, timeout_s: float = 30, what: str = "") -> None:
    """Look again and again until it holds. `condition` may be a coroutine function."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert asyncio.get_running_loop().time() < deadline, f"never came true: {what or condition}"
        await asyncio.sleep(0.05)


@pytest.fixture(name="until")
def until_fixture() -> object:
    return until


class Stores:
    """Asks the disk and the broker how far the stores are."""

    def __init__(self, platform: Platform, bus: NatsBus) -> None:
        self._platform = platform
        self._bus = bus

    def jobs(self, name: str = "local") -> list[str]:
        """Every record on disk, twice if it is there twice."""
        root = self._platform.store(name)
        return [record.job for record in reading.read(root)] if root.is_dir() else []

    def last(self, name: str = "local") -> int:
        """The highest sequence on disk; 0 when there is nothing."""
        root = self._platform.store(name)
        return max((record.sequence for record in reading.read(root)), default=0) if root.is_dir() else 0

    async def settled(self, name: str = "local") -> int:
        info = await self._bus.consumer_info("RECORDS", streams.store_consumer(name))
        return 0 if info is None else info.ack_floor

    async def complete(self, *names_: str, records: Records, timeout_s: float = 40) -> None:
        """Wait until every store has settled everything that was published, then check every byte."""
        last = max(published.sequence for published in records.published.values())
        for name in names_ or ("local",):

            async def settled(name: str = name) -> bool:
                return await self.settled(name) >= last

            await until(settled, timeout_s=timeout_s, what=f"store {name} has settled {last}")
        self.check(*names_, records=records)

    def check(self, *names_: str, records: Records) -> None:
        found = {name: reading.inspect(self._platform.store(name)) for name in names_ or ("local",)}
        wanted = {job for job, published in records.published.items() if published.record.persist}
        for name, findings in found.items():
            assert findings.clean, (name, findings.twice, findings.corrupt, findings.missing, findings.gaps)
            assert findings.fingerprints.keys() == wanted, name
        prints = [findings.fingerprints for findings in found.values()]
        assert all(one == prints[0] for one in prints)


@pytest.fixture
def stores(platform: Platform, bus: NatsBus) -> Stores:
    return Stores(platform, bus)


@dataclass
class Own:
    """Everything on a broker that this test may kill."""

    broker: Broker
    bus: NatsBus
    platform: Platform
    records: Records
    stores: Stores


@pytest.fixture
async def make_own(tmp_path: Path) -> AsyncIterator[Callable[[Broker, NatsBus], Own]]:
    made: list[Own] = []

    def make(broker: Broker, bus: NatsBus) -> Own:
        platform = Platform(broker, tmp_path / "own")
        platform.folder.mkdir()
        made.append(Own(broker, bus, platform, Records(bus), Stores(platform, bus)))
        return made[-1]

    yield make
    for own in made:
        await own.platform.end()


@pytest.fixture
async def own(own_broker: Broker, make_own: Callable[[Broker, NatsBus], Own]) -> AsyncIterator[Own]:
    async with connect(url=own_broker.url, instance="test") as bus:
        await provision(bus)
        own = make_own(own_broker, bus)
        yield own
        await own.platform.end()
