"""A broker with the users and lists that `up` writes, one user for each service."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from hearth_cli.local.broker_config import users_text
from hearth_cli.local.broker_users import BOOTSTRAP, LISTENER, Rules
from hearth_contracts import registry
from hearth_kit import nats_bus
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker

INSTANCES = {
    registry.GATEWAY: "gateway-1",
    registry.SCHEDULER: "scheduler-1",
    registry.EXECUTOR: "edge-1-0a1b2c3d",
    registry.AI_PROXY: "ai-proxy-1",
    registry.PERSISTER: "persister-1",
}
#: A second executor: what is another's even among equals.
OTHER = "edge-2-ffffffff"


class Guarded(Broker):
    """As `up` runs it."""

    def __init__(self, folder: Path) -> None:
        rules = Rules.from_contracts()
        services = tuple(rules.user(instance, "pw", service) for service, instance in INSTANCES.items())
        extra = users_text(
            system=(rules.user("system", "pw", BOOTSTRAP),),
            services=(*services, rules.user(OTHER, "pw", registry.EXECUTOR), rules.user(BOOTSTRAP, "pw", BOOTSTRAP),
                      rules.user(LISTENER, "pw", LISTENER)),
            tenants={"acme": (rules.user("acme-publisher", "pw", "publisher", tenant="acme"),),
                     "other": (rules.user("other-publisher", "pw", "publisher", tenant="other"),)},
            prefix=rules.prefix,
        )  # fmt: skip
        super().__init__(folder, extra=f"{extra}\nsystem_account: SYS")

    @contextlib.asynccontextmanager
    async def bus(self, user: str) -> AsyncIterator[nats_bus.NatsBus]:
        async with nats_bus.connect(url=self.url, instance=user, user=user, password="pw", wait_s=5) as bus:
            yield bus

    @contextlib.asynccontextmanager
    async def raw(self, user: str) -> AsyncIterator["Raw"]:
        client = Raw()
        await client.connect(
            self.url, user=user, password="pw", inbox_prefix=f"_INBOX.{user}", allow_reconnect=False, error_cb=client.on_error
        )
        try:
            yield client
        finally:
            await client.close()


class Raw(Client):
    """A client that tells what the broker refused."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []

    async def on_error(self, error: Exception) -> None:
        self.refused.append(str(error).lower())

    async def _refusals(self) -> list[str]:
        # The broker's refusal comes before its answer to a ping; the library's first ping overtakes what waits.
        await self.flush()
        await self.flush()
        refused, self.refused = self.refused, []
        return refused

    async def may_say(self, subject: str) -> bool:
        await self.publish(subject, b"")
        return not await self._refusals()

    async def may_hear(self, subject: str) -> bool:
        subscription = await self.subscribe(subject)
        refused = await self._refusals()
        await subscription.unsubscribe()
        return not refused


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(tmp_path_factory.mktemp("guarded"))

    async def make() -> None:
        async with server.bus(BOOTSTRAP) as bus:
            await provision(bus)

    try:
        server.start()
        asyncio.run(make())
        yield server
    finally:
        server.stop()
