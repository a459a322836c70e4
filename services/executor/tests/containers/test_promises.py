"""Promises by count: each hostile function several times over, the full counts with `./hearth test --all`. Over the whole
backend, on either link, and measured from outside."""

import asyncio
import json
import resource
import time
from pathlib import Path

import pytest

from hearth_contracts.enums import Reason
from hearth_executor.containers import cgroup
from hearth_executor.domain.limits import PIDS_MAX
from hearth_executor.errors import SandboxSpent

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

LINKS = pytest.mark.parametrize("link", ["fast", "stdio"])


def rounds(few: int, full: int):
    return pytest.mark.parametrize("count", [few, pytest.param(full, marks=pytest.mark.long)])


async def until(condition, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def living(platform: str, api) -> list[int]:
    """Processes of a platform's containers, as the kernel lists them."""
    found = list[int]()
    for entry in api.containers([f"hearth.platform={platform}"]):
        pid = api._json("GET", f"/containers/{entry['Id']}/json")["State"]["Pid"]
        group = cgroup.locate(pid) if pid else None
        if group is not None:
            found += group.pids()
            group.close()
    return found


SPINNERS = (
    "while True: pass",
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n    while True: pass",
    "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]\n    while True: time.sleep(1)",
    "if os.fork() == 0: os.setsid()\n    while True: pass",
    "os.kill(os.getpid(), signal.SIGSTOP)",
)


@LINKS
@rounds(5, 50)
async def test_47_no_call_outlives_its_timeout(start_backend, one_file, link, count):
    async with start_backend(link=link) as backend:
        functions = [
            one_file(f"import os, signal, time\ndef handle(event, context):\n    {body}\n", isolation=isolation)
            for body, isolation in zip(SPINNERS, ["process", "reuse", "process", "process", "reuse"], strict=True)
        ]
        for number in range(count):
            function = functions[number % len(functions)]
            unit = backend.take(function.version) or await backend.make(function.version, function.chunks)
            group, first = unit.booted.sandbox.container.cgroup, unit.booted.sandbox.container.pid
            began = time.monotonic()
            try:
                finished = await function.call(unit, timeout_s=0.2)
            except SandboxSpent:
                backend.give_back(unit, reusable=False)
                continue
            assert finished.reason == Reason.TIMEOUT
            assert time.monotonic() - began < 0.2 + 1 + 1
            backend.give_back(unit, reusable=True)
            # What is still there five seconds later is the sandbox alone, or nothing.
            await until(lambda group=group, first=first: not Path(f"/proc/{first}").exists() or len(group.pids()) <= 5)


BOMB = "x = []\\nwhile True: x.append(bytearray(1 << 20))"
MEMORY_BOMBS = (
    f'exec("{BOMB}")',
    f'import subprocess; subprocess.run(["/usr/bin/python3", "-c", "{BOMB}"])',
    "import os\n    f = os.memfd_create('x')\n    while True: os.write(f, bytes(1 << 20))",
)


@LINKS
@rounds(3, 20)
async def test_43_memory_that_runs_out_is_told_as_such(start_backend, one_file, link, count):
    """Also when a child alone used it, and where the memory is no process's own."""
    async with start_backend(link=link) as backend:
        functions = [one_file(f"def handle(event, context):\n    {body}\n", memory_mb=64) for body in MEMORY_BOMBS]
        swap = Path("/proc/swaps").read_text()
        for number in range(count):
            assert (await functions[number % 3].once(backend)).reason == Reason.OOM
        assert Path("/proc/swaps").read_text() == swap


@LINKS
async def test_42_a_fork_bomb_ends_at_its_limit(start_backend, one_file, link):
    async with start_backend(link=link) as backend:
        bomb = one_file("import os\ndef handle(event, context):\n    while True:\n        os.fork()\n")
        unit = await backend.make(bomb.version, bomb.chunks)
        group, most = unit.booted.sandbox.container.cgroup, 0
        calling = asyncio.create_task(bomb.call(unit, timeout_s=1.5))
        while not calling.done():
            most = max(most, len(group.pids()))
            await asyncio.sleep(0.01)
        assert (await calling).reason == Reason.RESOURCE
        assert 20 < most <= PIDS_MAX


@pytest.mark.long
async def test_42_the_neighbour_of_a_fork_bomb_hardly_notices(start_backend, one_file):
    async with start_backend(generic={"python/128": 2}) as backend:
        light = one_file("def handle(event, context): return 1")
        bomb = one_file("import os\ndef handle(event, context):\n    while True:\n        os.fork()\n", cpu=0.5)

        async def p99_s(calls: int = 300) -> float:
            times = []
            for _ in range(calls):
                began = time.perf_counter()
                assert (await light.once(backend)).reason is None
                times.append(time.perf_counter() - began)
            return sorted(times)[int(calls * 0.99)]

        await p99_s(50)
        alone = await p99_s()
        unit = await backend.make(bomb.version, bomb.chunks)
        calling = asyncio.create_task(bomb.call(unit, timeout_s=60))
        beside = await p99_s()
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        assert beside <= max(1.5 * alone, alone + 0.01)


LEAVERS = """
import os, time
def handle(event, context):
    for _ in range(25):
        if os.fork() == 0: os._exit(0)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setpgid(0, 0)
            while True: time.sleep(1)
        os._exit(0)
    return 1
"""


@LINKS
@pytest.mark.parametrize("isolation", ["process", "reuse", "fresh"])
async def test_48_nothing_is_left_of_what_a_call_left_behind(start_backend, one_file, api, platform, link, isolation):
    async with start_backend(link=link, generic={}, generic_max=0) as backend:
        leaver = one_file(LEAVERS, isolation=isolation)
        for _ in range(3):
            assert (await leaver.once(backend)).result == b"1"
            await until(lambda: living(platform, api) == [])


@LINKS
async def test_a_cancelled_call_leaves_no_process(start_backend, one_file, api, platform, link):
    source = """
import os, signal, subprocess
def handle(event, context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    subprocess.run(["sleep", "1000"])
"""
    async with start_backend(link=link, generic={}, generic_max=0) as backend:
        function = one_file(source)
        for _ in range(3):
            unit = await backend.make(function.version, function.chunks)
            calling = asyncio.create_task(function.call(unit, timeout_s=60))
            group = unit.booted.sandbox.container.cgroup
            await until(lambda group=group: sum(b"sleep" in comm(pid) for pid in group.pids()) == 2)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            backend.give_back(unit, reusable=False)
            await until(lambda: living(platform, api) == [])


def comm(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return b""


FLOODS = (
    "line = b'x' * 65535 + b'\\n'\n    while True: os.write(1, line)",
    "line = b'x' * 65536\n    while True: os.write(2, line)",  # one line without end
    "while True: print('y' * 100)",
    "while True: context.log('z' * 1000)",
)


@LINKS
@rounds(4, 100)
async def test_49_a_flood_of_output_is_drained_to_its_end(start_backend, one_file, link, count):
    """Stopped in time whatever it prints, in memory that does not grow with it, and nothing of it is kept by the engine."""
    async with start_backend(link=link) as backend:
        floods = [one_file(f"import os\ndef handle(event, context):\n    {body}\n", cpu=1) for body in FLOODS]
        for flood in floods:
            await flood.call(await backend.make(flood.version, flood.chunks), timeout_s=0.1)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            flood = floods[number % len(floods)]
            unit = backend.take(flood.version) or await backend.make(flood.version, flood.chunks)
            began = time.monotonic()
            finished = await flood.call(unit, timeout_s=0.3)
            assert finished.reason == Reason.TIMEOUT
            assert finished.log_truncated or number % len(floods) > 1  # on a busy machine those that format may print little
            assert time.monotonic() - began < 0.3 + 2
            backend.give_back(unit, reusable=True)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib <= 16 * 1024


@LINKS
async def test_44_50_the_host_keeps_nothing_of_what_a_function_writes_or_prints(start_backend, one_file, api, platform, link):
    source = """
import os
def handle(event, context):
    for path in ("/tmp/a", "/dev/shm/a", "/output/a"):
        try:
            with open(path, "wb") as file:
                while True: file.write(bytes(1 << 20))
        except OSError: pass
    os.unlink("/output/a")
    for _ in range(100): os.write(1, bytes(1 << 16))
    return 1
"""
    async with start_backend(link=link, generic={}, generic_max=0) as backend:
        filler = one_file(source)
        assert (await filler.once(backend)).result == b"1"
        (entry,) = api.containers([f"hearth.platform={platform}"])
        inspected = api._json("GET", f"/containers/{entry['Id']}/json?size=1")
        assert inspected["LogPath"] == ""
        assert inspected["SizeRw"] == 0


MIXED = """
import os
MARK = None
def handle(event, context):
    global MARK
    found = [MARK, *(open(folder + "/mark").read() for folder in ("/tmp", "/dev/shm") if os.path.exists(folder + "/mark"))]
    MARK = event
    for folder in ("/tmp", "/dev/shm"):
        open(folder + "/mark", "w").write(event)
    return found
"""


@rounds(300, 10_000)
async def test_69_70_no_container_serves_two_and_nothing_is_handed_on(start_backend, one_file, link_of_round, count):
    """Calls of tenants x functions x versions, mixed: each container sees one of them, and a marker left in scratch, shared
    memory or globals is met again in globals alone, where processes are reused, and then by the same version."""
    tenants, names, versions = (5, 4, 3) if count > 1000 else (3, 2, 2)
    functions = [
        one_file(
            MIXED, tenant=f"t{tenant}", name=f"f{name}", number=number, isolation="reuse" if name % 2 else "process", memory_mb=64
        )
        for tenant in range(tenants)
        for name in range(names)
        for number in range(1, versions + 1)
    ]
    served: dict[str, set[str]] = {}
    kept = 0
    async with start_backend(link=link_of_round, generic={"python/64": 2}, memory_budget_mb=12_000, units_max=100) as backend:

        async def call(function) -> None:
            nonlocal kept
            unit = backend.take(function.version) or await backend.make(function.version, function.chunks)
            served.setdefault(unit.id, set()).add(function.version.key)
            finished = await function.call(unit, json.dumps(function.version.key).encode())
            assert finished.reason is None, finished
            mark, *files = json.loads(finished.result)
            assert files == []
            assert mark in ((None, function.version.key) if function.version.spec.isolation == "reuse" else (None,))
            kept += mark is not None
            backend.give_back(unit, reusable=True)

        for at in range(0, count, 4):
            await asyncio.gather(*(call(functions[(at + n) * 7 % len(functions)]) for n in range(4)))
    assert all(len(keys) == 1 for keys in served.values())
    assert set.union(*served.values()) == {function.version.key for function in functions}
    assert kept > 0  # the marker is one that can be met again


@pytest.fixture(params=["fast", "stdio"])
def link_of_round(request) -> str:
    return request.param
