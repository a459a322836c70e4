"""The async lane's backlog stays in the broker: one consumer per function, asked for what can be placed now, and one more."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hearth_contracts import streams, subjects
from hearth_contracts.functions import FunctionHead
from hearth_kit.background import Background
from hearth_kit.bus import Bus, ConsumerSpec, Pump
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_kit.provision import SCHEDULER_ACK_WAIT_S
from hearth_kit.registry import Registry
from hearth_scheduler.domain import depth

_log = logging.getLogger(__name__)

AGAIN_S: Final = 0.25
#: Consumers made at once when a term begins.
TOGETHER: Final = 32
#: Functions whose backlog is asked for per look.
ASKED_MAX: Final = 32


@dataclass(slots=True, eq=False)
class Feed:
    """One function's jobs."""

    tenant: str
    function: str
    pump: Pump | None = None
    held: int = 0
    behind: int = 0
    """Jobs in the broker behind those in hand, as last heard."""
    leaving: bool = False
    """Its function is deleted: it goes once it is empty."""
    missing: bool = False
    """Its consumer was said to be gone."""

    @property
    def name(self) -> str:
        return f"{self.tenant}.{self.function}"

    @property
    def consumer(self) -> str:
        return streams.function_consumer(self.tenant, self.function)


class Feeds:
    """One per term of office."""

    def __init__(
        self, *, bus: Bus, registry: Registry, arrived: Callable[[Message], None], open_slots: Callable[[], int]
    ) -> None:
        self._bus = bus
        self._registry = registry
        self._arrived = arrived
        self._open_slots = open_slots
        self._tasks = Background("feeds")
        self._feeds: dict[str, Feed] = {}
        self._asked = 0

    async def start(self) -> None:
        made = set(await self._bus.consumer_names(streams.JOBS.name))
        heads = {f"{head.tenant}.{head.function}": head for head in self._registry.heads()}
        wanted = [Feed(head.tenant, head.function) for head in heads.values() if not head.deleted]
        for name in made:
            tenant, equals, function = name.removeprefix("f_").partition("=")
            head = heads.get(f"{tenant}.{function}")
            if equals and (head is None or head.deleted):
                wanted.append(Feed(tenant, function, leaving=True))
        for start in range(0, len(wanted), TOGETHER):
            await asyncio.gather(*(self._open(feed, make=feed.consumer not in made) for feed in wanted[start : start + TOGETHER]))

    def changed(self, head: FunctionHead) -> None:
        """A function was deployed or deleted."""
        feed = self._feeds.get(f"{head.tenant}.{head.function}")
        if feed is not None:
            feed.leaving = head.deleted
        elif not head.deleted:
            self._tasks.start(self._open_surely(Feed(head.tenant, head.function)))

    async def _open_surely(self, feed: Feed) -> None:
        while feed.name not in self._feeds or self._feeds[feed.name] is feed:
            try:
                await self._open(feed, make=True)
                return
            except BusError as error:
                _log.warning("a function's consumer could not be made: %s", error, extra={"function": feed.name})
                await asyncio.sleep(AGAIN_S)

    async def _open(self, feed: Feed, *, make: bool) -> None:
        self._feeds[feed.name] = feed
        if make:
            await self._bus.ensure_consumer(
                ConsumerSpec(
                    streams.JOBS.name, feed.consumer, filter_subject=subjects.job(feed.tenant, feed.function),
                    ack_wait_s=SCHEDULER_ACK_WAIT_S,
                )
            )  # fmt: skip

        def deliver(message: Message) -> None:
            feed.held += 1
            feed.behind = message.pending
            feed.missing = False
            self._arrived(message)
            self._top_up(feed)

        def lost(why: str) -> None:
            feed.missing = True

        feed.pump = await self._bus.pull(streams.JOBS.name, feed.consumer, deliver, auto=False, lost=lost)
        self._top_up(feed)

    def left(self, name: str) -> None:
        """A job of this function is no longer in hand."""
        feed = self._feeds.get(name)
        if feed is not None:
            feed.held -= 1
            self._top_up(feed)

    def _top_up(self, feed: Feed) -> None:
        if feed.pump is None:
            return
        open_slots = self._open_slots() if feed.behind else 0
        wanted = depth.window(behind=feed.behind, open_slots=open_slots)
        more = depth.grant(wanted=wanted, held=feed.held, asked=feed.pump.granted)
        if more:
            feed.pump.grant(more)

    # Looking after them

    def behind(self) -> dict[str, int]:
        return {feed.name: feed.behind for feed in self._feeds.values() if feed.behind}

    async def count(self) -> None:
        """Ask how much waits behind what is in hand, where anything is; so many at a time, in turn."""
        waiting = [feed for feed in self._feeds.values() if feed.held or feed.behind]
        if not waiting:
            return
        start = self._asked % len(waiting)
        asked = (waiting[start:] + waiting[:start])[:ASKED_MAX]
        self._asked = start + len(asked)
        await asyncio.gather(*(self._count(feed) for feed in asked))

    async def _count(self, feed: Feed) -> None:
        try:
            info = await self._bus.consumer_info(streams.JOBS.name, feed.consumer)
        except BusError:
            return
        if info is not None:
            feed.behind = info.pending

    async def tidy(self) -> None:
        """Consumers of deleted functions go when nothing is left for them."""
        for feed in [feed for feed in self._feeds.values() if feed.leaving and not feed.held]:
            info = await self._bus.consumer_info(streams.JOBS.name, feed.consumer)
            if info is not None and (info.pending or info.ack_pending):
                continue
            if feed.leaving and not feed.held:
                del self._feeds[feed.name]
                if feed.pump is not None:
                    await feed.pump.stop()
                await self._bus.delete_consumer(streams.JOBS.name, feed.consumer)

    async def problems(self) -> dict[str, str]:
        """Consumers that somebody deleted by hand: never silently remade while in use."""
        found: dict[str, str] = {}
        for feed in [feed for feed in self._feeds.values() if feed.missing]:
            if await self._bus.consumer_info(streams.JOBS.name, feed.consumer) is None:
                found[f"consumer {feed.consumer}"] = (
                    f"consumer {feed.consumer} of stream JOBS was deleted; its jobs are still there: restart this scheduler, "
                    "which makes it again"
                )
            else:
                feed.missing = False
        return found

    async def stop(self) -> None:
        await self._tasks.cancel()
        await asyncio.gather(*(feed.pump.stop() for feed in self._feeds.values() if feed.pump is not None))
