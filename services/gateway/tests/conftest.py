"""A gateway on a real port and a real broker, with the rest of the platform behind the contracts (`platform_double.py`)."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from eventually import until
from platform_double import SOURCE, PlatformDouble, running

from hearth_gateway.app import gateway as gateway_of
from hearth_gateway.config import Settings
from hearth_kit import lifecycle
from hearth_kit.nats_bus import NatsBus
from hearth_kit.pytest_plugin import Broker


@dataclass
class Gateway:
    """A running gateway and a client that has its admin key."""

    url: str
    key: str
    http: aiohttp.ClientSession
    bus: NatsBus
    double: PlatformDouble
    port: int
    settings: Settings
    extra: dict[str, Any] = field(default_factory=dict)

    def headers(self, key: str = "", **more: str) -> dict[str, str]:
        return {"x-api-key": key or self.key, **more}

    async def call(self, method: str, path: str, *, key: str = "", **options: Any) -> tuple[int, Any, Any]:
        """Status, body (parsed where it is JSON), headers."""
        headers = {**({"x-api-key": key or self.key} if key != "-" else {}), **options.pop("headers", {})}
        async with self.http.request(method, self.url + path, headers=headers, **options) as response:
            raw = await response.read()
            parsed = json.loads(raw) if "json" in response.headers.get("content-type", "") and raw else raw
            return response.status, parsed, response.headers

    async def deploy(self, name: str = "hello", *, key: str = "", source: str = SOURCE, **spec: Any) -> dict[str, Any]:
        status, body, _ = await self.call("PUT", f"/v1/functions/{name}", key=key, json={"spec": spec, "source": source})
        assert status in (200, 201), body
        return body

    async def invoke(self, name: str = "hello", data: bytes = b'{"n":1}', **options: Any) -> tuple[int, Any, Any]:
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return await self.call("POST", f"/v1/functions/{name}/invoke", data=data, headers=headers, **options)

    async def tenant_key(self, tenant: str, **more: Any) -> str:
        status, body, _ = await self.call("POST", "/v1/keys", json={"tenant": tenant, **more})
        assert status == 201, body
        return body["key"]


@contextlib.asynccontextmanager
async def started(broker: Broker, bus: NatsBus, folder: Path, **settings: Any) -> AsyncIterator[Gateway]:
    chosen = Settings(
        **{
            "nats_url": broker.url, "instance": "gateway-1", "data_dir": folder, "http_port": 0, "drain_s_max": 1,
            "traces_per_second": 1000, "silent_s_max": 60,  # a busy machine may keep the double quiet for a while
            **settings,
        }
    )  # fmt: skip
    double = PlatformDouble(bus)
    listens: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with lifecycle.running(chosen, service="gateway", with_health=False) as life, gateway_of(chosen, life) as listening:
            listens.set_result(listening.port)
            await stop.wait()

    async with running(double), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        serving = asyncio.get_running_loop().create_task(serve())
        try:
            await asyncio.wait({serving, listens}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            port = listens.result()
            key = chosen.admin_key_path.read_text().strip()
            made = Gateway(f"http://127.0.0.1:{port}", key, http, bus, double, port, chosen)
            made.extra["stop"] = stop
            double.said()
            await until(lambda: ready(made))
            yield made
        finally:
            stop.set()
            await serving


async def ready(made: Gateway) -> bool:
    _, body, _ = await made.call("GET", "/readyz", key="-")
    return body.get("status") == "ready" and not body.get("warnings")


@pytest.fixture
async def gateway(broker: Broker, bus: NatsBus, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with started(broker, bus, tmp_path) as made:
        yield made


@pytest.fixture
def make_gateway() -> Any:
    """For tests that choose settings or their own broker: `async with make_gateway(broker, bus, folder, **settings)`."""
    return started


@pytest.fixture
def eventually() -> Any:
    return until
