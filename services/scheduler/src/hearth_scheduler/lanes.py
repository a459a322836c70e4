"""What the active scheduler pulls: sync calls as they come, jobs as they can be placed, outcomes."""

import logging
from collections.abc import Callable

from hearth_contracts import streams, subjects
from hearth_contracts.functions import FunctionHead
from hearth_kit.background import Background
from hearth_kit.bus import Bus, ConsumerSpec, Pump
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_kit.provision import SCHEDULER_ACK_WAIT_S, scheduler_consumers
from hearth_kit.registry import Registry
from hearth_scheduler.intake import Intake
from hearth_scheduler.waiting import Waiting

_log = logging.getLogger(__name__)

#: Jobs of one function taken ahead of a place at most; the rest waits in the broker, where it costs nothing.
AHEAD_MAX = 64
#: Sync calls asked for at once.
CALLS_BATCH = 1024


class JobLine:
    """The pull of one function's jobs."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self.pending = 0
        """Jobs that wait in the broker, as of the last delivery."""
        self.taken = 0
        """Jobs of this function in our hands."""


class Lanes:
    """Consumers and pumps of the active scheduler."""

    def __init__(self, *, bus: Bus, registry: Registry, intake: Intake, free: Callable[[], int]) -> None:
        self._bus = bus
        self._registry = registry
        self._intake = intake
        self._free = free
        self._pumps: list[Pump] = []
        self._lines: dict[str, JobLine] = {}
        self._opening: set[str] = set()
        self._work = Background("lanes")
        self._open = False

    async def start(self) -> None:
        await self._consumers()
        self._open = True
        self._pumps = [
            await self._bus.pull("CALLS", streams.SCHEDULER_CONSUMER, self._intake.on_call, batch=CALLS_BATCH),
            await self._bus.pull("OUTCOMES", streams.SCHEDULER_CONSUMER, self._intake.on_outcome, batch=256),
            await self._bus.pull("OUTCOMES_SYNC", streams.SCHEDULER_CONSUMER, self._intake.on_outcome, batch=256),
        ]
        self._registry.on_change(self._function_changed)

    async def _consumers(self) -> None:
        for spec in scheduler_consumers():
            await self._bus.ensure_consumer(spec)
        await self._bus.ensure_consumer(ConsumerSpec("AI", streams.AI_CONSUMER, ack_wait_s=SCHEDULER_ACK_WAIT_S))

    async def remade(self) -> None:
        """After the broker came back."""
        await self._consumers()

    def _function_changed(self, head: FunctionHead) -> None:
        key = f"{head.tenant}.{head.function}"
        if self._open and key not in self._lines and key not in self._opening:
            self._opening.add(key)
            self._work.start(self._open_line(head.tenant, head.function, key))

    async def _open_line(self, tenant: str, function: str, key: str) -> None:
        name = streams.function_consumer(tenant, function)
        try:
            await self._bus.ensure_consumer(
                ConsumerSpec("JOBS", name, filter_subject=subjects.job(tenant, function), ack_wait_s=SCHEDULER_ACK_WAIT_S)
            )

            def on_job(message: Message) -> None:
                line.pending = message.pending
                line.taken += 1
                self._intake.on_job(message)

            pump = await self._bus.pull("JOBS", name, on_job, auto=False)
            line = self._lines[key] = JobLine(pump)
            pump.grant(1)
        except BusError as error:
            _log.warning("jobs of %s: %s", key, error)
        finally:
            self._opening.discard(key)

    def retry_openings(self) -> None:
        """Lines that could not be opened."""
        for head in self._registry.heads():
            self._function_changed(head)

    def left(self, waiting: Waiting) -> None:
        """A call has left our hands: one more may come."""
        line = self._lines.get(f"{waiting.call.tenant}.{waiting.call.function}")
        if line is not None and waiting.source == "jobs":
            line.taken = max(0, line.taken - 1)
            self.top_up(line)

    def top_up(self, line: JobLine) -> None:
        """Ask for what can be placed now, and always for one."""
        wanted = min(AHEAD_MAX, max(1, self._free() if line.pending else 1))
        missing = wanted - line.taken - line.pump.granted
        if missing > 0:
            line.pump.grant(missing)

    def top_up_all(self) -> None:
        for line in self._lines.values():
            self.top_up(line)

    def settle_taken(self, held: dict[str, int]) -> None:
        """Correct the counts by what is really held: a job that ended in a final left our hands, too."""
        for key, line in self._lines.items():
            line.taken = held.get(key, 0)

    def pending(self) -> dict[str, int]:
        return {key: line.pending for key, line in self._lines.items() if line.pending}

    async def refresh_pending(self) -> None:
        """The broker's own figures, for functions whose line stands still."""
        for key, line in list(self._lines.items()):
            if line.taken and not line.pump.granted:
                tenant, function = key.split(".")
                info = await self._bus.consumer_info("JOBS", streams.function_consumer(tenant, function))
                if info is not None:
                    line.pending = info.pending

    async def stop(self) -> None:
        self._open = False
        for pump in [*self._pumps, *(line.pump for line in self._lines.values())]:
            await pump.stop()
        await self._work.cancel()
        self._pumps, self._lines = [], {}
