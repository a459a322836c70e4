"""The container backend on the real engine."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from hearth_executor.containers import cgroup, pool, profile
from hearth_executor.containers.engine import Engine
from hearth_executor.domain.limits import MIB, PLATFORM_MEMORY_MB
from hearth_executor.errors import BackendUnavailable, ImageMissing, SandboxError

pytestmark = pytest.mark.docker

ECHO = "def handle(event, context):\n    return event\n"


async def until(condition, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def container_of(unit):
    return unit.booted.sandbox.container


@pytest.mark.parametrize("link", ["fast", "stdio"])
async def test_a_function_is_called_cold_then_warm_over_either_link(start_backend, one_file, link):
    async with start_backend(link=link) as backend:
        assert backend.link == link
        assert backend.notes["link"].startswith(f"{link}: ")
        echo = one_file(ECHO)
        unit = await backend.make(echo.version, echo.chunks)
        assert {"create", "code", "import"} <= set(unit.cold_phases)
        assert (await echo.call(unit, b'{"a": 1}')).result == b'{"a":1}'
        backend.give_back(unit, reusable=True)
        warm = backend.take(echo.version)
        assert warm is unit
        assert warm.cold_phases == {}
        assert (await echo.call(warm, b"2")).result == b"2"
        assert 0 < float(backend.notes["cgroup_read_us"]) < 1000


async def test_no_question_to_the_engine_on_the_path_of_a_warm_call(start_backend, one_file, monkeypatch):
    async with start_backend(generic={}, generic_max=0) as backend:
        echo = one_file(ECHO)
        await echo.once(backend)

        async def asked(self, call, limit_s):
            raise AssertionError("the engine was asked")

        with monkeypatch.context() as patched:
            patched.setattr(Engine, "_ask", asked)
            for _ in range(20):
                assert (await echo.once(backend, b"1")).reason is None
            other = one_file(ECHO)
            with pytest.raises(AssertionError, match="the engine was asked"):  # the trap does bite
                await Engine.ping(backend._engine)
            assert other.version.key not in backend.report().warm


async def test_every_container_keeps_the_profile_by_inspect_and_from_inside(start_backend, one_file, api, platform):
    """Both modes, generic and assigned; from inside for every process there is."""
    for link in ("fast", "stdio"):
        async with start_backend(link=link, boot=link.ljust(8, "0")) as backend:
            echo = one_file(ECHO)
            await echo.once(backend)
            await until(lambda backend=backend: backend.report().generic["python/128"] >= 1)
            listed = api.containers([f"hearth.platform={platform}"])
            assert len(listed) >= 2
            seen = 0
            for entry in listed:
                inspected = api._json("GET", f"/containers/{entry['Id']}/json")
                assert profile.deviations(inspected) == []
                if not inspected["State"]["Pid"]:
                    continue  # made this moment, and not started yet
                group = cgroup.locate(inspected["State"]["Pid"])
                assert group is not None
                for pid in group.pids():
                    status = Path(f"/proc/{pid}/status").read_text()
                    assert profile.inside_deviations(status) == [], status
                    seen += 1
                group.close()
            assert seen >= 4


async def test_every_container_has_a_uid_of_its_own(start_backend, one_file, api, platform):
    async with start_backend(generic={"python/128": 3}, executor="e1") as one, start_backend(executor="e2") as other:
        await until(lambda: one.report().generic["python/128"] == 3 and other.report().generic["python/128"] == 1)
        uids = [entry["Labels"]["hearth.uid"] for entry in api.containers([f"hearth.platform={platform}"])]
        assert len(uids) == len(set(uids)) == 4


async def test_limits_are_the_functions_own_once_it_serves(start_backend, one_file):
    async with start_backend() as backend:
        small = one_file(ECHO, memory_mb=64, cpu=0.25)
        unit = await backend.make(small.version, small.chunks)
        folder = container_of(unit).cgroup.path
        name = "memory.max" if container_of(unit).cgroup.version == 2 else "memory.limit_in_bytes"
        assert abs(int((folder / name).read_text()) - (64 + PLATFORM_MEMORY_MB) * MIB) < MIB


@pytest.mark.parametrize(
    "source",
    ["kept = bytearray(200 * 1024 * 1024)\n", "kept = bytearray(75 * 1024 * 1024)\n# " + "x" * 5_000_000 + "\n"],
    ids=["more than while loading", "more than is left once the code is unpacked"],
)
async def test_an_import_that_uses_more_than_the_functions_memory_is_out_of_memory(start_backend, one_file, source):
    """While code is unpacked the limit is higher; what the import keeps must fit what the function asked for."""
    async with start_backend() as backend:
        greedy = one_file(source + ECHO, memory_mb=64)
        with pytest.raises(SandboxError) as caught:
            await backend.make(greedy.version, greedy.chunks)
        assert caught.value.reason == "oom"


async def test_a_burst_of_new_functions_does_not_fail(start_backend, one_file):
    functions = [one_file(ECHO) for _ in range(12)]
    async with start_backend(generic={"python/128": 2}) as backend:
        results = await asyncio.gather(*(function.once(backend, b"7") for function in functions))
        assert [result.result for result in results] == [b"7"] * len(functions)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_burst_of_fifty_new_functions_does_not_fail(start_backend, one_file):
    functions = [one_file(ECHO) for _ in range(50)]
    async with start_backend(generic={"python/128": 4}) as backend:
        results = await asyncio.gather(*(function.once(backend, b"7") for function in functions))
        assert [result.result for result in results] == [b"7"] * len(functions)


async def test_no_container_ever_serves_two_versions(start_backend, one_file):
    served: dict[str, set[str]] = {}
    functions = [one_file(ECHO, tenant=tenant, name=name) for tenant in ("acme", "beta") for name in ("f", "g")]
    async with start_backend(generic={"python/128": 2}) as backend:

        async def call(function) -> None:
            unit = backend.take(function.version) or await backend.make(function.version, function.chunks)
            served.setdefault(unit.id, set()).add(function.version.key)
            await function.call(unit)
            backend.give_back(unit, reusable=True)

        for _ in range(5):
            await asyncio.gather(*(call(function) for function in functions for _ in range(2)))
    assert len(served) >= 8
    assert all(len(keys) == 1 for keys in served.values())


async def test_a_container_killed_from_outside_is_replaced_and_forgotten(start_backend, one_file, api, platform):
    async with start_backend() as backend:
        echo = one_file(ECHO)
        unit = await backend.make(echo.version, echo.chunks)
        backend.give_back(unit, reusable=True)
        killed = container_of(unit)
        os.kill(killed.pid, signal.SIGKILL)
        await until(lambda: backend.report().warm == {})
        await until(lambda: killed.id not in {entry["Id"] for entry in api.containers([f"hearth.platform={platform}"])})
        assert (await echo.once(backend, b"3")).result == b"3"


async def test_leaving_removes_every_container(start_backend, one_file, api, platform):
    async with start_backend(generic={"python/128": 2}) as backend:
        await one_file(ECHO).once(backend)
    assert api.containers([f"hearth.platform={platform}"]) == []


async def test_orphans_of_an_earlier_life_go_and_everyone_elses_stay(start_backend, api, platform, built_image):
    def orphan(**labels: str) -> str:
        config = {
            "Image": built_image, "Entrypoint": ["/usr/bin/python3"], "Cmd": ["-c", "import time; time.sleep(600)"],
            "Labels": {"hearth.test-deviates": "stands for another executor's", **labels}, "HostConfig": {"NetworkMode": "none"},
        }  # fmt: skip
        made = api._json("POST", "/containers/create", body=__import__("json").dumps(config).encode())["Id"]
        api._json("POST", f"/containers/{made}/start")
        return made

    ours = {"hearth.platform": platform, "hearth.executor": "e1"}
    earlier = orphan(**ours, **{"hearth.boot": "00000000"})
    peer = orphan(**ours | {"hearth.executor": "e2", "hearth.boot": "11111111"})
    stranger = orphan(**ours | {"hearth.platform": f"{platform}-other", "hearth.boot": "00000000"})
    try:
        async with start_backend() as backend:
            present = {entry["Id"] for entry in api.containers(["hearth.test-deviates"])}
            assert earlier not in present
            assert {peer, stranger} <= present
            backend.executor_died("e2", "11111111")
            await backend._reaper.sweep()
            present = {entry["Id"] for entry in api.containers(["hearth.test-deviates"])}
            assert peer not in present
            assert stranger in present
    finally:
        for container in (earlier, peer, stranger):
            api.remove_container(container)


async def test_a_container_of_ours_that_we_do_not_know_of_is_an_orphan(start_backend, api, platform):
    """As after a creation that was given up while the engine hung."""
    async with start_backend() as backend:
        await until(lambda: backend.report().generic["python/128"] == 1)
        known = set(backend._maker.known)
        assert await backend._reaper.sweep() == 0
        backend._maker.known.clear()
        assert await backend._reaper.sweep() == 1
        backend._maker.known.update(known)
        await until(lambda: backend.report().generic["python/128"] == 1)


async def test_an_image_that_is_not_there_says_how_to_make_it(start_backend, one_file):
    async with start_backend(images={"python": "hearth-runtime-python:nope"}) as backend:
        echo = one_file(ECHO)
        with pytest.raises(ImageMissing, match=r"\./hearth images build") as caught:
            await backend.make(echo.version, echo.chunks)
        assert caught.value.reason == "image"


async def test_an_image_with_a_volume_is_refused(start_backend, one_file, api, built_image):
    with api.container({"Image": built_image}) as container:
        api.commit(container, "hearth-test-volume:latest", ["VOLUME /data"])
    try:
        async with start_backend(images={"python": "hearth-test-volume:latest"}, generic={}) as backend:
            echo = one_file(ECHO)
            with pytest.raises(SandboxError, match="volume at /data"):
                await asyncio.wait_for(backend.make(echo.version, echo.chunks), 20)
    finally:
        api.remove_image("hearth-test-volume:latest")


async def test_a_runtime_the_engine_does_not_have_is_refused(start_backend):
    with pytest.raises(BackendUnavailable, match="no runtime 'runsc'"):
        async with start_backend(oci_runtime="runsc"):
            pass


async def test_readings_come_from_the_kernels_files_within_microseconds(start_backend, one_file):
    async with start_backend() as backend:
        echo = one_file(ECHO)
        unit = await backend.make(echo.version, echo.chunks)
        group = container_of(unit).cgroup
        reading = group.read()
        assert 5 * MIB < reading.memory_bytes < 64 * MIB
        assert reading.cpu_us > 1000
        best = 1.0
        for _ in range(50):
            began = time.perf_counter()
            group.read()
            best = min(best, time.perf_counter() - began)
        assert best < 100e-6


SPINNER = """
import threading, time
ticks = 0
def spin():
    global ticks
    while True:
        ticks += 1
threading.Thread(target=spin, daemon=True).start()
def handle(event, context):
    return ticks
"""


async def test_what_a_function_left_running_rests_between_calls(start_backend, one_file):
    """PROMISES 71: a thread that keeps running after the reply gets no processor until the next call."""
    async with start_backend() as backend:
        spinner = one_file(SPINNER, cpu=1, isolation="reuse")
        unit = await backend.make(spinner.version, spinner.chunks)
        container = container_of(unit)
        assert (await spinner.call(unit)).reason is None
        before = container.cgroup.read().cpu_us
        await until(lambda: container.cgroup.read().cpu_us > before + 50_000)  # it does run
        backend.give_back(unit, reusable=True)
        await until(lambda: unit.frozen)
        await asyncio.sleep(0.05)
        frozen = container.cgroup.read().cpu_us
        await asyncio.sleep(0.3)
        assert container.cgroup.read().cpu_us - frozen < 5_000
        assert (await spinner.once(backend)).reason is None
        assert backend.take(spinner.version) is unit
        backend.give_back(unit, reusable=True)
        await until(lambda: unit.frozen)


async def test_a_frozen_container_can_be_killed(start_backend, one_file):
    async with start_backend() as backend:
        spinner = one_file(SPINNER, isolation="reuse")
        unit = await backend.make(spinner.version, spinner.chunks)
        assert container_of(unit).cgroup.freeze()
        pidfd = os.pidfd_open(container_of(unit).pid)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, ended.set)
        assert container_of(unit).kill()  # past the engine, which would thaw it itself
        await asyncio.wait_for(ended.wait(), 5)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


STOPS = """
import os
def handle(event, context):
    if os.fork() == 0:
        os.setsid()
        while True: pass
    os.kill(os.getppid(), 19)  # its zygote: nobody can be forked, and nobody is told of what ended
    return 1
"""


async def test_who_stops_the_one_that_tidies_up_does_not_run_on(start_backend, one_file, monkeypatch):
    """What cannot be put in order after a call is destroyed, with what still runs in it; control: while it is let be, it runs."""
    monkeypatch.setattr(pool, "UNSETTLED_S_MAX", 1.0)
    async with start_backend() as backend:
        stops = one_file(STOPS, cpu=1)
        unit = await backend.make(stops.version, stops.chunks)
        group, pid = container_of(unit).cgroup, container_of(unit).pid
        assert (await stops.call(unit)).result == b"1"
        backend.give_back(unit, reusable=True)
        before = group.read().cpu_us
        await until(lambda: group.read().cpu_us > before + 100_000)  # the spinner does run meanwhile
        await until(lambda: unit.gone)
        await until(lambda: not Path(f"/proc/{pid}").exists())
