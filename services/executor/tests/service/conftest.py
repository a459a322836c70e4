"""An executor on a real broker, with functions that run in this process."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import placing

from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.pytest_plugin import Broker, broker, bus, own_broker  # noqa: F401

Start = Callable[..., AbstractAsyncContextManager[placing.Running]]


@pytest.fixture
async def own_bus(broker: Broker, bus: NatsBus) -> AsyncIterator[NatsBus]:  # noqa: F811
    """The executor's own connection, after the streams were emptied."""
    async with connect(url=broker.url, instance="executor-1-0a1b2c3d") as connection:
        yield connection


@pytest.fixture
def start(own_bus: NatsBus, bus: NatsBus) -> Start:  # noqa: F811
    def begin(functions: Any, **fields: Any) -> AbstractAsyncContextManager[placing.Running]:
        return placing.executor(own_bus, others=bus, functions=functions, **fields)

    return begin
