"""One world to test a bus in, twice: in memory with a clock that is moved, and on a real nats-server in real time."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from hearth_kit.bus import Bus
from hearth_kit.clock import ManualClock
from hearth_kit.memory_bus import MemoryBroker
from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.pytest_plugin import Broker

#: Nothing in a test takes longer, unless it is broken, even where many suites run at once.
DEADLINE_S = 30.0


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the services run on."""
    return {"uvloop": uvloop.new_event_loop}


async def until(condition: Callable[[], Any], *, within_s: float = DEADLINE_S) -> None:
    """Poll in real time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


class MemoryWorld:
    def __init__(self) -> None:
        self._broker = MemoryBroker(ManualClock())
        self._numbers = itertools.count(1)
        self.bus: Bus = self._broker.connect("test")

    async def another(self) -> Bus:
        return self._broker.connect(f"test-{next(self._numbers)}")

    async def until(self, condition: Callable[[], Any], *, within_s: float = DEADLINE_S) -> None:
        """Moves the clock in small steps until it holds."""
        passed = 0.0
        await self._broker.settle()
        while not condition():
            if passed > within_s:
                raise TimeoutError
            await self._broker.advance(0.05)
            passed += 0.05

    async def quiet(self, seconds: float) -> None:
        """Let so much time pass, in which nothing is expected."""
        await self._broker.advance(seconds)


class NatsWorld:
    def __init__(self, bus: NatsBus, broker: Broker, stack: contextlib.AsyncExitStack) -> None:
        self.bus: Bus = bus
        self._broker = broker
        self._stack = stack
        self._numbers = itertools.count(1)

    async def another(self) -> Bus:
        return await self._stack.enter_async_context(connect(url=self._broker.url, instance=f"test-{next(self._numbers)}"))

    async def until(self, condition: Callable[[], Any], *, within_s: float = DEADLINE_S) -> None:
        await until(condition, within_s=within_s)

    async def quiet(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # the absence of an event in real time has no sign to poll for


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.broker)])
def real(request: pytest.FixtureRequest) -> Broker | None:
    return request.getfixturevalue("broker") if request.param == "nats" else None


@pytest.fixture
async def world(real: Broker | None) -> AsyncIterator[MemoryWorld | NatsWorld]:
    if real is None:
        yield MemoryWorld()
        return
    broker = real
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(url=broker.url, instance="test"))
        await empty(bus)
        yield NatsWorld(bus, broker, stack)


async def empty(bus: NatsBus) -> None:
    """What an earlier test left on the shared broker."""
    from hearth_contracts import streams

    for stream in streams.STREAMS:
        for consumer in await bus.consumer_names(stream.name):
            await bus.delete_consumer(stream.name, consumer)
        await bus.purge(stream.name)
