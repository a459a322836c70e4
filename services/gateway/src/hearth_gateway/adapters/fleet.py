"""Who lives, how much room there is, how long the queues are: heard on the bus, kept in memory, read for nothing."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hearth_contracts import registry, streams, subjects
from hearth_contracts.calls import Depths
from hearth_contracts.errors import UndecodableMessage
from hearth_contracts.fleet import STORE_DEGRADED, STORE_NOTE, STORE_WRITING, Capacity, Presence
from hearth_kit import provision
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.message import Message

_log = logging.getLogger(__name__)

#: A process says twice a second that it lives; one that missed this long is shown as gone.
GONE_S: Final = 1.8
#: What is gone is shown for this long.
FORGET_S: Final = 120.0
#: Past this share of RECORDS' bytes new calls are refused (DELIVERY rule 14).
RECORDS_FULL: Final = 0.9


@dataclass(slots=True)
class _Heard:
    at: float
    """Monotonic."""
    said: Any


class Fleet:
    """The platform as this gateway hears it."""

    def __init__(self, *, bus: Bus, clock: Clock, silent_s_max: float, streams_check_s: float) -> None:
        self._bus = bus
        self._clock = clock
        self._silent_s_max = silent_s_max
        self._streams_check_s = streams_check_s
        self._executors: dict[str, _Heard] = {}
        self._processes: dict[tuple[str, str], _Heard] = {}
        self._depths: dict[str, _Heard] = {}
        self._waiting: dict[str, int] = {}
        self._heard_scheduler_at = float("-inf")
        self._heard_executor_at = float("-inf")
        self._heard_backend_at = float("-inf")
        """When an executor last said that it has something to run functions in."""
        self.slots = 0
        """Calls the living executors can run at once."""
        self.records_full = False
        self.streams: list[dict[str, Any]] = []
        self.stream_problems: dict[str, str] = {}

    async def start(self) -> None:
        await self._bus.subscribe(subjects.CAPACITY_ALL, self._capacity)
        await self._bus.subscribe(subjects.PRESENCE_ALL, self._presence)
        await self._bus.subscribe(subjects.DEPTHS_ALL, self._depth)
        with contextlib.suppress(BusError):
            for stored in await self._bus.get_last_each(streams.CAPACITY.name, [subjects.CAPACITY_ALL]):
                self._capacity(stored.message)
        await self._look_at_streams()

    # Hearing

    def _capacity(self, message: Message) -> None:
        with _said(message):
            report = message.meta(Capacity)
            now = self._clock.monotonic()
            self._executors[report.executor] = _Heard(now, report)
            self._heard_executor_at = now
            if report.backends:
                self._heard_backend_at = now
            self._count_slots(now)

    def _count_slots(self, now: float) -> None:
        self.slots = sum(
            heard.said.slots
            for heard in self._executors.values()
            if now - heard.at < self._silent_s_max and not heard.said.draining
        )

    def _presence(self, message: Message) -> None:
        with _said(message):
            presence = message.meta(Presence)
            now = self._clock.monotonic()
            self._processes[presence.service, presence.instance] = _Heard(now, presence)
            if presence.service == registry.SCHEDULER:
                self._heard_scheduler_at = now

    def _depth(self, message: Message) -> None:
        with _said(message):
            depths = message.meta(Depths)
            now = self._clock.monotonic()
            self._heard_scheduler_at = now
            self._depths[depths.scheduler] = _Heard(now, depths)
            newest = max((heard.said for heard in self._depths.values()), key=lambda said: said.epoch)
            self._waiting = newest.waiting

    # Asking

    def waiting(self, tenant: str, function: str) -> int:
        return self._waiting.get(f"{tenant}.{function}", 0)

    def away(self) -> str:
        """What is missing to run a call now; empty when nothing is."""
        now = self._clock.monotonic()
        if now - self._heard_executor_at > self._silent_s_max:
            return "no executor has been heard"
        if now - self._heard_backend_at > self._silent_s_max:
            return "no executor has a container engine: ./hearth doctor names what is missing"
        if now - self._heard_scheduler_at > self._silent_s_max:
            return "no scheduler has been heard"
        return ""

    def store_problems(self) -> dict[str, str]:
        """Stores that no persister can write to, each with its fix. Calls go on: what they wait for stays on the broker."""
        now = self._clock.monotonic()
        wrong: dict[str, str] = {}
        writing: set[str] = set()
        for heard in self._processes.values():
            if heard.said.service != registry.PERSISTER or now - heard.at > GONE_S:
                continue
            for name, state in heard.said.notes.items():
                if name.startswith(STORE_NOTE) and state == STORE_WRITING:
                    writing.add(name)
                elif name.startswith(STORE_NOTE) and state.startswith(STORE_DEGRADED):
                    wrong[name] = f"{state}; make room there or mount it again: until then finished calls stay on the broker"
        return {name: fix for name, fix in sorted(wrong.items()) if name not in writing}

    def carries(self, labels: Mapping[str, str]) -> bool:
        """Whether a living executor has all of these."""
        now = self._clock.monotonic()
        return any(
            labels.items() <= heard.said.labels.items()
            for heard in self._executors.values()
            if now - heard.at < self._silent_s_max
        )

    def alive(self, service: str) -> bool:
        now = self._clock.monotonic()
        return any(name == service and now - heard.at < self._silent_s_max for (name, _), heard in self._processes.items())

    def executors(self) -> list[str]:
        """Ids of those heard lately."""
        now = self._clock.monotonic()
        return [name for name, heard in self._executors.items() if now - heard.at < 2 * self._silent_s_max]

    # Keeping

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = self._clock.monotonic()
            self._count_slots(now)
            for known in (self._executors, self._processes, self._depths):
                for name in [name for name, heard in known.items() if now - heard.at > FORGET_S]:
                    del known[name]  # pyright: ignore[reportArgumentType]

    async def watch_streams(self) -> None:
        while True:
            await asyncio.sleep(self._streams_check_s)
            with contextlib.suppress(BusError):
                await self._look_at_streams()

    async def _look_at_streams(self) -> None:
        """Behind everything's back: never on a call's path."""
        seen: list[dict[str, Any]] = []
        for stream in streams.STREAMS:
            info = await self._bus.stream_info(stream.name)
            if info is None:
                seen.append({"name": stream.name, "storage": stream.storage, "state": "missing"})
                continue
            full = info.bytes / stream.max_bytes if stream.max_bytes > 0 else 0.0
            seen.append(
                {
                    "name": stream.name, "storage": stream.storage, "state": "full" if full >= RECORDS_FULL else "ok",
                    "messages": info.messages, "bytes": info.bytes, "bytes_max": stream.max_bytes, "last": info.last_sequence,
                }
            )  # fmt: skip
            if stream is streams.RECORDS:
                limit = int(info.config.get("max_bytes", stream.max_bytes))
                self.records_full = limit > 0 and info.bytes >= RECORDS_FULL * limit
        self.streams = seen
        self.stream_problems = await provision.problems(self._bus, tuple(stream.name for stream in streams.FILE_STREAMS))

    # Showing

    def snapshot(self) -> dict[str, Any]:
        """The fleet whole, from memory: it answers at once, whatever is down."""
        now = self._clock.monotonic()
        return {
            "processes": [_process(heard.said, now - heard.at) for _, heard in sorted(self._processes.items())],
            "executors": [_executor(heard.said, now - heard.at) for _, heard in sorted(self._executors.items())],
            "queues": dict(sorted(self._waiting.items())),
            "streams": self.streams,
        }


def _process(presence: Presence, silent_s: float) -> dict[str, Any]:
    return {
        "service": presence.service, "instance": presence.instance, "pid": presence.pid, "started_at": presence.started_at,
        "state": _state(silent_s, ready=presence.ready), "seen_s_ago": round(silent_s, 2), "notes": presence.notes,
    }  # fmt: skip


def _executor(report: Capacity, silent_s: float) -> dict[str, Any]:
    state = _state(silent_s, ready=True)
    return {
        **report.model_dump(mode="json"), "state": "draining" if report.draining and state != "gone" else state,
        "seen_s_ago": round(silent_s, 2), "pools": {"assigned": report.assigned, "warm": report.warm, "generic": report.generic},
    }  # fmt: skip


def _state(silent_s: float, *, ready: bool) -> str:
    if silent_s > GONE_S:
        return "gone"
    return "ready" if ready else "starting"


@contextlib.contextmanager
def _said(message: Message) -> Any:
    try:
        yield
    except UndecodableMessage as error:
        _log.warning("an unreadable report: %s", error)
