"""Engines that are not there, do not answer, hang, or die: told apart, survived, and nothing leaked."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hearth_cli.local.engine_api import EngineApi
from hearth_executor.containers import engine as engine_module
from hearth_executor.containers.engine import Engine, check_socket
from hearth_executor.errors import BackendUnavailable, EngineForbidden, EngineMissing, EngineStopped

ECHO = "def handle(event, context):\n    return event\n"


async def until(condition, within_s: float = 30.0, what: str = "it did not happen in time") -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def test_no_question_of_ours_copies_files_runs_commands_or_asks_for_statistics():
    """PROMISES 74: the archive API has let containers out; exec and stats belong on no path of ours either."""
    asked = Path(engine_module.__file__).read_text().split('"""', 2)[2]
    assert "/start" in asked
    for path in ("/archive", "/exec", "/stats", "/logs", "/copy", "/export"):
        assert path not in asked


# -- three ways of not being there


def test_not_installed(tmp_path):
    with pytest.raises(EngineMissing, match="no container engine is installed") as caught:
        check_socket(str(tmp_path / "docker.sock"), which=lambda name: None)
    assert caught.value.fix == "./hearth doctor --fix"


def test_installed_and_not_running(tmp_path):
    with pytest.raises(EngineStopped, match="does not answer") as caught:
        check_socket(str(tmp_path / "docker.sock"), which=lambda name: f"/usr/sbin/{name}")
    assert caught.value.fix


def test_not_for_this_user(tmp_path):
    """Asked as another user than root, for whom permissions count."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        for folder in (tmp_path, *tmp_path.parents):
            if folder != Path("/") and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o055)
        asked = os.fork()
        if asked == 0:
            os.setuid(65534)
            try:
                check_socket(str(path))
            except EngineForbidden as error:
                os._exit(0 if "usermod -aG docker" in error.fix else 3)
            except BaseException:
                os._exit(2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]) == 0


async def test_a_socket_that_nobody_listens_on_is_a_stopped_engine(tmp_path):
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as once:
        once.bind(str(path))
    with pytest.raises(EngineStopped):
        async with Engine(url=f"unix://{path}"):
            pass


async def test_an_engine_that_takes_connections_and_never_answers_is_told_within_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "PING_S", 0.2)
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(path)
        deaf.listen()
        began = time.monotonic()
        with pytest.raises(EngineStopped, match="hangs"):
            async with Engine(url=f"unix://{path}"):
                pass
        assert time.monotonic() - began < 2


@pytest.mark.docker
async def test_an_engine_says_what_it_is():
    async with Engine() as engine:
        info = engine.info
        assert info.version
        assert info.cgroup_version in (1, 2)
        assert "runc" in info.oci_runtimes
        assert engine.answering


# -- an engine of the test's own, that may be stopped and killed


class OwnEngine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = str(folder / "docker.sock")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        folder = self.folder
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "dockerd", "--host", self.url, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
                    "--pidfile", str(folder / "pid"), "--bridge=none", "--iptables=false", "--ip6tables=false",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                EngineApi(self.socket).version()
                return
            except OSError:
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.1)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Both daemons at once, as a crash of the machine's engine would; containers and their shims live on."""
        daemons = [int((self.folder / name).read_text()) for name in ("pid", "exec/containerd/containerd.pid")]
        for pid in daemons:
            os.kill(pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{daemons[1]}").exists():  # else the next one would wait for it in vain
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        """Whatever is left of it, by the folder that its processes and mounts name."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(30)
        for shim in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(self.folder).encode() in shim.read_bytes():
                    os.kill(int(shim.parent.name), signal.SIGKILL)
            except OSError:
                continue
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([each for each in mounts if each.startswith(str(self.folder))]):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def containers(self, platform: str) -> list[str]:
        return [entry["Names"][0] for entry in EngineApi(self.socket).containers([f"hearth.platform={platform}"])]


@pytest.fixture(scope="module")
def own_engine(built_image, tmp_path_factory):
    """A second engine on this machine, with the runtime image in it."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("needs root and dockerd for an engine of its own")
    engine = OwnEngine(Path(f"/var/tmp/hearth-engine-{os.getpid()}"))
    engine.folder.mkdir()
    try:
        engine.start()
        with subprocess.Popen(["docker", "save", built_image], stdout=subprocess.PIPE) as saved:
            subprocess.run(["docker", "--host", engine.url, "load"], stdin=saved.stdout, check=True, capture_output=True)
        assert saved.returncode == 0
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def impatient(monkeypatch):
    """Limits that fit a test: an engine that hangs is told within a second instead of twenty."""
    monkeypatch.setattr(engine_module, "ASK_S", 1.0)
    monkeypatch.setattr(engine_module, "CHANGE_S", 3.0)
    monkeypatch.setattr(engine_module, "PING_S", 1.0)


@pytest.mark.docker
async def test_a_hung_engine_stops_nothing_that_is_warm_and_leaks_nothing(
    own_engine, impatient, start_backend, one_file, platform
):
    """PROMISES 58: the breaker opens, what needs a new container is handed back, and afterwards every container counts."""
    async with start_backend(engine_url=own_engine.url, generic={"python/128": 1}) as backend:
        warm = one_file(ECHO)
        assert (await warm.once(backend)).reason is None
        await until(lambda: backend.report().generic["python/128"] >= 1)
        own_engine.signal(signal.SIGSTOP)
        try:
            assert (await warm.once(backend, b"1")).result == b"1"
            spare = backend.report().generic["python/128"]
            for _ in range(spare):
                assert (await one_file(ECHO).once(backend, b"2")).result == b"2"
            began = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await one_file(ECHO).once(backend)
            assert time.monotonic() - began < 20
            await until(lambda: not backend.answering, what="the breaker did not open")
            assert "hangs" in backend.notes["engine"]
            began = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await one_file(ECHO).once(backend)
            assert time.monotonic() - began < 3, "an open breaker says no at once"
            lost = backend.take(warm.version)
            backend.give_back(lost, reusable=False)  # its removal has to wait for the engine
        finally:
            own_engine.signal(signal.SIGCONT)
        await until(lambda: backend.answering, what="the breaker did not close")
        assert (await one_file(ECHO).once(backend, b"3")).result == b"3"

        async def counts_agree() -> bool:
            await backend._reaper.sweep()
            return len(own_engine.containers(platform)) == backend.report().units

        deadline = time.monotonic() + 30
        while not await counts_agree():
            assert time.monotonic() < deadline, (own_engine.containers(platform), backend.report())
            await asyncio.sleep(0.2)
    assert own_engine.containers(platform) == []


@pytest.mark.docker
async def test_a_killed_engine_takes_its_containers_along_and_the_pool_starts_anew(
    own_engine, impatient, start_backend, one_file, platform
):
    async with start_backend(engine_url=own_engine.url, generic={"python/128": 1}) as backend:
        echo = one_file(ECHO)
        assert (await echo.once(backend)).reason is None
        await asyncio.to_thread(own_engine.kill)
        await asyncio.to_thread(own_engine.start)
        deadline = time.monotonic() + 40
        while True:  # what lived may live on or not, by the engine's settings; in the end a call works
            try:
                result = await echo.once(backend, b"4")
            except BackendUnavailable:
                result = None
            if result is not None and result.result == b"4":
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        deadline = time.monotonic() + 30
        while len(own_engine.containers(platform)) != backend.report().units:
            await backend._reaper.sweep()
            assert time.monotonic() < deadline, (own_engine.containers(platform), backend.report())
            await asyncio.sleep(0.2)


@pytest.mark.docker
def test_containers_of_a_killed_executor_go_with_its_next_life(built_image, api, platform, tmp_path):
    """PROMISES 59, with real processes: kill -9, then the same name starts again; a living peer's stay."""
    script = tmp_path / "executor.py"
    script.write_text(
        "import asyncio, sys\n"
        "from hearth_executor.containers.backend import ContainerBackend, ContainerSettings\n"
        "async def main(name, boot):\n"
        f"    settings = ContainerSettings(platform={platform!r}, executor=name, boot=boot, images={{'python': {built_image!r}}},\n"
        "        generic={'python/128': 2})\n"
        "    async with ContainerBackend(settings) as backend:\n"
        "        while backend.report().generic['python/128'] < 2:\n"
        "            await asyncio.sleep(0.02)\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.to_thread(sys.stdin.readline)\n"
        "asyncio.run(main(*sys.argv[1:]))\n"
    )
    started = []

    def start(name: str, boot: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(script), name, boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def boots() -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in api.containers([f"hearth.platform={platform}"]):
            boot = entry["Labels"]["hearth.boot"]
            found[boot] = found.get(boot, 0) + 1
        return found

    try:
        start("peer", "cccccccc")
        victim = start("e1", "aaaaaaaa")
        assert boots() == {"cccccccc": 2, "aaaaaaaa": 2}
        victim.kill()
        victim.wait()
        next_life = start("e1", "bbbbbbbb")
        assert boots() == {"cccccccc": 2, "bbbbbbbb": 2}
        next_life.communicate("\n", timeout=30)
        assert boots() == {"cccccccc": 2}
    finally:
        for process in started:
            if process.poll() is None:
                process.communicate("\n", timeout=30)
            for stream in (process.stdin, process.stdout):
                stream.close()
