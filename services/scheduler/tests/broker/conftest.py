"""A scheduler on a real broker."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from scheduler_world import World

from hearth_kit.nats_bus import NatsBus
from hearth_kit.pytest_plugin import Broker, broker, bus, own_broker  # noqa: F401


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the services run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def world(broker: Broker, bus: NatsBus) -> AsyncIterator[World]:  # noqa: F811
    async with contextlib.AsyncExitStack() as stack:
        made = World(bus, broker.url, stack)
        await made.start()
        yield made
