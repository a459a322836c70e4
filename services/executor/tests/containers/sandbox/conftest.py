"""Real sandboxes: a container of the hardened profile with the runtime of this checkout in it, loaded and called over
the real link."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from hearth_contracts.functions import CodeRef, FunctionSpec, FunctionVersion
from hearth_executor.containers import cgroup, profile
from hearth_executor.containers.container import Container, LinkMode
from hearth_executor.containers.engine import Engine
from hearth_executor.containers.pytest_plugin import LABEL_EXPECTED
from hearth_executor.containers.sandbox import ContainerSandbox, boot
from hearth_executor.domain.limits import at_boot, folders
from hearth_executor.ports import CallEvents, Finished, Invocation
from hearth_kit.clock import SystemClock


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine() as engine:
        yield engine


class StartContainer(Protocol):
    async def __call__(
        self, mode: LinkMode = "fast", memory_mb: int = 128, *, without: tuple[tuple[str, str], ...] = ()
    ) -> Container: ...


#: Starts the supervisor with some of its guards taken out, for control runs.
CRIPPLED = """
import sys
path = "/opt/hearth/supervisor.py"
text = open(path).read()
for old, new in {guards!r}:
    assert text.count(old) == 1
    text = text.replace(old, new)
exec(compile(text, path, "exec"), {{"__name__": "__main__", "__file__": path}})
"""


@pytest.fixture
async def start_container(engine: Engine, built_image: str) -> AsyncIterator[StartContainer]:
    """A started container that nobody has linked to yet. All are removed at the end."""
    made: list[Container] = []
    owner = profile.Owner(platform=f"test-{secrets.token_hex(4)}", executor="sandbox-test", boot=secrets.token_hex(4))
    uids = iter(range(0x77100000 + os.getpid() % 4096 * 64, 0x77800000))

    async def start(mode: LinkMode = "fast", memory_mb: int = 128, *, without: tuple[tuple[str, str], ...] = ()) -> Container:
        name = f"hearth-test-{secrets.token_hex(6)}"
        uid = next(uids)
        config = profile.create_config(
            image=built_image,
            owner=owner,
            runtime="python",
            class_mb=memory_mb,
            uid=uid,
            mode=mode,
            socket_name=name,
            limits=at_boot(memory_mb),
            folders=folders(memory_mb),
        )
        if without:
            code = CRIPPLED.format(guards=without)
            config["Entrypoint"] = ["/usr/bin/python3", "-I", "-S", "-c", code]
            config["Labels"][LABEL_EXPECTED] = "another command"
        container_id = await engine.create(config, name=name)
        attached = await engine.attach(container_id) if mode == "stdio" else None
        await engine.start(container_id)
        pid = (await engine.inspect(container_id))["State"]["Pid"]
        container = Container(
            id=container_id,
            name=name,
            pid=pid,
            pidfd=os.pidfd_open(pid),
            uid=uid,
            mode=mode,
            socket_name=name,
            runtime="python",
            class_mb=memory_mb,
            cgroup=cgroup.locate(pid),
            attached=attached,
        )
        made.append(container)
        return container

    yield start
    for container in made:
        container.kill()
        container.close()
    await asyncio.gather(*(engine.remove(container.id) for container in made))


@dataclass
class Heard:
    """What a call told while it ran."""

    logs: list[tuple[str, bytes, float]] = field(default_factory=list)
    emitted: list[tuple[str, bytes, str]] = field(default_factory=list)
    large: list[bytes] = field(default_factory=list)
    asked_large: int = 0
    write_delay_s: float = 0.0

    def log(self, stream: str, data: bytes) -> None:
        self.logs.append((stream, data, time.monotonic()))

    def text(self, stream: str = "stdout") -> bytes:
        return b"".join(data for name, data, _ in self.logs if name == stream)

    async def emit(self, subject: str, data: bytes, content_type: str) -> None:
        if subject == "refused":
            raise ValueError("no such subject")
        self.emitted.append((subject, data, content_type))

    async def large_result(self, size: int | None) -> "Heard":
        self.asked_large += 1
        return self

    async def write(self, chunk: bytes) -> None:
        if self.write_delay_s:
            await asyncio.sleep(self.write_delay_s)
        self.large.append(chunk)

    def events(self) -> CallEvents:
        return CallEvents(log=self.log, emit=self.emit, large_result=self.large_result)


@pytest.fixture
def make_heard() -> type[Heard]:
    return Heard


class Function:
    """A loaded sandbox with a short way to call it."""

    def __init__(self, sandbox: ContainerSandbox) -> None:
        self.sandbox = sandbox
        self.calls = 0

    async def call(
        self,
        body: "bytes | AsyncIterator[bytes]" = b"null",
        *,
        size: int | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = 30,
        heard: Heard | None = None,
        http: Mapping[str, object] | None = None,
    ) -> Finished:
        self.calls += 1
        invocation = Invocation(
            job=f"job-{self.calls}",
            attempt=1,
            deadline=None if timeout_s is None else SystemClock().now() + timeout_s,
            content_type=content_type,
            body=body,
            body_size=len(body) if isinstance(body, bytes) else size or 0,
            traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
            http=http,
        )
        return await self.sandbox.call(invocation, (heard or Heard()).events())


LoadFunction = Callable[..., Awaitable[Function]]


@pytest.fixture
def load_function(start_container: StartContainer) -> LoadFunction:
    """A function made of one file's source (or a bundle), loaded into a container of its own."""

    async def load(
        source: "str | bytes",
        *,
        mode: LinkMode = "fast",
        kind: str = "file",
        memory_mb: int = 128,
        without: tuple[tuple[str, str], ...] = (),
        **spec: Any,
    ) -> Function:
        sandbox = await boot(await start_container(mode, memory_mb, without=without))
        code = source.encode() if isinstance(source, str) else source
        await sandbox.load(version(code, kind=kind, memory_mb=memory_mb, **spec), chunks(code))
        return Function(sandbox)

    return load


def version(code: bytes, *, kind: str = "file", **spec: Any) -> FunctionVersion:
    return FunctionVersion(
        tenant="acme",
        function="probe",
        version=1,
        digest="0" * 64,
        spec=FunctionSpec(name="probe", **spec),
        code=CodeRef(object="x", kind=kind, filename="main.py" if kind == "file" else "", size=len(code), sha256="0" * 64),  # type: ignore[arg-type]
        created_at=0.0,
    )


async def chunks(code: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(code), size):
        yield code[at : at + size]


@pytest.fixture(params=["fast", "stdio"])
def mode(request: pytest.FixtureRequest) -> LinkMode:
    return request.param
