"""Keeps a platform's processes alive: starts them, writes their logs, starts a crashed one again, stops them in order."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from hearth_cli.local import proc, restarts
from hearth_cli.local.data_dir import DataDir
from hearth_cli.local.log_file import LogFile

#: How often a starting process is asked whether it is ready.
READY_POLL_S: Final = 0.1
_READ_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep alive."""

    name: str
    service: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready_url: str
    port: int
    stop_s_max: float
    """How long it may take to end by itself once told to."""
    defaults: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the supervisor's own environment may override."""
    before_start: Callable[[], Mapping[str, str]] = field(default=dict)
    """Called before every start; what it answers is added to the environment."""


@dataclass(slots=True)
class Running:
    """What is known of a program's process now."""

    program: Program
    state: str = "waiting"
    """waiting | starting | ready | backoff | stopping | stopped"""
    pid: int = 0
    mark: str = ""
    restarts: int = 0
    crashes: int = 0
    exit_code: int | None = None
    process: "subprocess.Popen[bytes] | None" = None


class Supervisor:
    """Owns the processes. `changed` is called with the whole table whenever anything in it changes."""

    def __init__(self, *, data: DataDir, changed: Callable[[list[Running]], None]) -> None:
        self._data = data
        self._changed = changed
        self._running: dict[str, Running] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._tie = proc.die_with_parent()

    def start(self, program: Program) -> None:
        """Start a program and keep it alive from now on."""
        running = Running(program)
        self._running[program.name] = running
        self._tasks[program.name] = asyncio.create_task(self._keep(running), name=program.name)

    def beside(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Do this for as long as the programs run; like a keeper, it must not break."""
        self._tasks[f"beside {name}"] = asyncio.create_task(work, name=name)

    def table(self) -> list[Running]:
        return list(self._running.values())

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def pids(self) -> list[int]:
        """Of every process that lives."""
        return [one.pid for one in self.table() if proc.is_same(one.pid, one.mark)]

    async def ready(self, names: list[str], *, within_s: float) -> list[str]:
        """Wait until these are ready; answers with those that are not."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if all(self._running[name].state == "ready" for name in names):
                return []
            await asyncio.sleep(READY_POLL_S)
        return [name for name in names if self._running[name].state != "ready"]

    async def failed(self) -> BaseException:
        """Wait until one of the keepers itself breaks: that must end the supervisor, never be passed over."""
        while True:
            done, _ = await asyncio.wait(self._tasks.values(), timeout=1, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not task.cancelled() and (error := task.exception()):
                    return error

    async def stop(self, phases: list[list[str]]) -> None:
        """Stop all, phase by phase; what does not end in its time is killed."""
        self._stopping = True
        for phase in phases:
            await asyncio.gather(*(self._stop(one) for one in self.table() if one.program.service in phase))
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _stop(self, running: Running) -> None:
        self._set(running, "stopping")
        proc.send(running.pid, running.mark, signal.SIGTERM)
        task = self._tasks[running.program.name]
        # A process that was stopped by hand (SIGSTOP) must hear the TERM, too.
        proc.send(running.pid, running.mark, signal.SIGCONT)
        if not proc.is_same(running.pid, running.mark):
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=running.program.stop_s_max)
        if not done:
            proc.send(running.pid, running.mark, signal.SIGKILL)
            await asyncio.wait([task], timeout=5)
        self._set(running, "stopped")

    async def _keep(self, running: Running) -> None:
        log = LogFile(self._data.logs / f"{running.program.name}.log")
        try:
            while not self._stopping:
                born = time.monotonic()
                await self._live(running, log)
                if self._stopping:
                    return
                running.crashes = restarts.crashes_after(running.crashes, lived_s=time.monotonic() - born)
                running.restarts += 1
                delay_s = restarts.delay_s(running.crashes)
                log.write(f"supervisor: ended with {running.exit_code}, starts again in {delay_s:g} s\n".encode())
                self._set(running, "backoff")
                await asyncio.sleep(delay_s)
        finally:
            log.close()

    async def _live(self, running: Running, log: LogFile) -> None:
        """One life of the process, from its start to its end."""
        program = running.program
        extra = await asyncio.to_thread(program.before_start)
        process = subprocess.Popen(
            program.command,
            env={**program.defaults, **os.environ, **program.environment, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the others in order
            preexec_fn=self._tie,  # noqa: PLW1509 (it makes one system call; no thread here holds a lock it needs)
        )
        running.process, running.pid, running.mark, running.exit_code = process, process.pid, proc.start_mark(process.pid), None
        self._set(running, "starting")
        asking = asyncio.create_task(self._watch_ready(running), name=f"{program.name}.ready")
        try:
            with _copied(process, log):
                running.exit_code = await _ended(process)
        finally:
            asking.cancel()
            if process.poll() is None:  # only where this task was cancelled
                process.kill()
                process.wait()

    async def _watch_ready(self, running: Running) -> None:
        while not await answers_ok(running.program.ready_url):
            await asyncio.sleep(READY_POLL_S)
        if running.state == "starting":
            self._set(running, "ready")

    def _set(self, running: Running, state: str) -> None:
        running.state = state
        self._changed(self.table())


@contextlib.contextmanager
def _copied(process: "subprocess.Popen[bytes]", log: LogFile) -> Iterator[None]:
    """Copy what a process prints into its log, until it ends: children of its own may hold the pipe for longer."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    loop = asyncio.get_running_loop()

    def copy() -> None:
        with contextlib.suppress(BlockingIOError):
            if chunk := os.read(pipe, _READ_BYTES):
                log.write(chunk)
            else:
                loop.remove_reader(pipe)

    loop.add_reader(pipe, copy)
    try:
        yield
    finally:
        loop.remove_reader(pipe)
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(pipe, _READ_BYTES):
                log.write(chunk)
        process.stdout.close()


async def _ended(process: "subprocess.Popen[bytes]") -> int:
    """The exit code, once it has one."""
    if not hasattr(os, "pidfd_open"):
        return await asyncio.to_thread(process.wait)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


async def answers_ok(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a loopback address answers 200: a few lines instead of an HTTP client in a process that must stay small."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
