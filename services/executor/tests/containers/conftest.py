"""The container backend on the real engine: images of this checkout, a platform of the test's own, functions of one file."""

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hearth_cli.local import images
from hearth_cli.local.engine_api import EngineApi
from hearth_contracts.functions import CodeRef, FunctionSpec, FunctionVersion
from hearth_executor.containers.backend import ContainerBackend, ContainerSettings
from hearth_executor.containers.pool import PooledUnit
from hearth_executor.ports import CallEvents, Finished, Invocation

ROOT = Path(__file__).parents[4]


class OneFile:
    """A function of one source file, deployed nowhere: its version and its code, never the same digest twice."""

    def __init__(self, source: str, **spec) -> None:
        self.code = f"{source}\n# {secrets.token_hex(8)}\n".encode()
        tenant = spec.pop("tenant", "acme")
        name = spec.pop("name", f"f{secrets.token_hex(4)}")
        number = spec.pop("number", 1)
        self.version = FunctionVersion(
            tenant=tenant, function=name, version=number, digest=hashlib.sha256(self.code).hexdigest(), spec=FunctionSpec(name=name, **spec),
            code=CodeRef(object="x", kind="file", filename="main.py", size=len(self.code), sha256="0" * 64), created_at=0.0,
        )  # fmt: skip

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.code

    async def call(self, unit: PooledUnit, body: bytes = b"null", *, timeout_s: float = 30) -> Finished:
        invocation = Invocation(
            job=f"job-{secrets.token_hex(4)}", attempt=1, deadline=time.time() + timeout_s, content_type="application/json",
            body=body, body_size=len(body), traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        )  # fmt: skip
        return await unit.call(invocation, CallEvents(log=lambda stream, data: None, emit=_refuse, large_result=_refuse))

    async def once(self, backend: ContainerBackend, body: bytes = b"null") -> Finished:
        """As the service calls: a warm unit, else a new one; given back afterwards."""
        unit = backend.take(self.version) or await backend.make(self.version, self.chunks)
        try:
            return await self.call(unit, body)
        finally:
            backend.give_back(unit, reusable=True)


async def _refuse(*_: object):
    raise AssertionError("these functions neither emit nor answer at length")


@pytest.fixture(scope="session")
def built_image() -> str:
    """The runtime image of this checkout, built as `images build` does."""
    return images.build(ROOT, ROOT / ".hearth" / "cache" / "images", lambda step: None).reference


@pytest.fixture
def api() -> EngineApi:
    return EngineApi()


@pytest.fixture
def platform(api: EngineApi):
    """A platform's name of this test alone; whatever bears it at the end is removed."""
    name = f"test{secrets.token_hex(4)}"
    yield name
    for container in api.containers([f"hearth.platform={name}"]):
        api.remove_container(container["Id"])


StartBackend = Callable[..., "asynccontextmanager[ContainerBackend]"]


@pytest.fixture
def start_backend(platform: str, built_image: str):
    """A backend with a small shelf, ready when entered."""

    @asynccontextmanager
    async def start(**changes) -> AsyncIterator[ContainerBackend]:
        settings = {
            "platform": platform, "executor": "e1", "boot": secrets.token_hex(4), "images": {"python": built_image},
            "generic": {"python/128": 1}, "generic_max": 2,
        } | changes  # fmt: skip
        async with ContainerBackend(ContainerSettings(**settings)) as backend:
            yield backend

    return start


@pytest.fixture
def one_file() -> type[OneFile]:
    return OneFile
