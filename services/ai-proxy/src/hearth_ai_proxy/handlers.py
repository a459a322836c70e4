"""From the broker to the service: so many requests in hand, no more."""

import asyncio

from hearth_ai_proxy.service import Service
from hearth_kit.background import Background
from hearth_kit.bus import Bus, Pump
from hearth_kit.message import Message


class Requests:
    """Pulls requests while there is room for them."""

    def __init__(self, *, bus: Bus, service: Service, stream: str, consumer: str, in_flight_max: int) -> None:
        self._bus = bus
        self._service = service
        self._stream = stream
        self._consumer = consumer
        self._in_flight_max = in_flight_max
        self._work = Background("ai-request")
        self._pump: Pump | None = None

    async def start(self) -> None:
        # The scheduler makes the consumer, and makes it again after a broker's restart: until then there is nothing to pull.
        self._pump = await self._bus.pull(self._stream, self._consumer, self._delivered, auto=False, lost=lambda why: None)
        self._pump.grant(self._in_flight_max)

    def _delivered(self, message: Message) -> None:
        self._work.start(self._service.serve(message)).add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        if self._pump is not None:
            self._pump.grant(1)

    async def stop(self, drain_s_max: float) -> None:
        """Ask for nothing more, finish what is in hand."""
        pump, self._pump = self._pump, None
        if pump is not None:
            await pump.stop()
        if not await self._work.drain(drain_s_max):
            await self._work.cancel()
