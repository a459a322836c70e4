"""One active, the others standing by: a key with a time to live, renewed by its holder, fenced by its revision.

Own code on plain publishes: the library's `create` keeps failing after an expiry, and its updates drop the time to live.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

from hearth_contracts import streams
from hearth_contracts.keys import Lease
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, WrongLastSequence
from hearth_kit.kv import Bucket, gone
from hearth_kit.message import Message

_log = logging.getLogger(__name__)

TTL_S: Final = 5
RENEW_S: Final = 1.5
#: After a renewal that failed the next one comes sooner.
RETRY_S: Final = 0.25
#: Ours ends this much before the broker lets it go: clocks' rates differ, and a timer may be late.
MARGIN_S: Final = 0.5
#: A standby looks this often, so that a dead holder is followed within the time to live and a second.
LOOK_S: Final = 0.5


class Held:
    """A role that is ours. `epoch` rises with every new holder; `lost` is set when it is ours no longer."""

    def __init__(self, *, epoch: int, until: float, clock: Clock) -> None:
        self.epoch = epoch
        self.lost = asyncio.Event()
        self._until = until
        self._clock = clock

    @property
    def ours(self) -> bool:
        """Whether it still is, by the clock: true only while nobody else can have it. A process that was stopped for a
        while asks this before it acts, as its timers have not run."""
        return not self.lost.is_set() and self._clock.monotonic() < self._until

    def extend(self, asked_at: float) -> None:
        self._until = asked_at + TTL_S - MARGIN_S

    @property
    def left_s(self) -> float:
        return self._until - self._clock.monotonic()


class Role:
    """Takes, keeps and gives back one role."""

    def __init__(self, *, bus: Bus, role: str, holder: str, clock: Clock) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, streams.LEASES, Lease)
        self._role = role
        self._holder = holder
        self._clock = clock

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[Held]:
        """Wait until the role is ours; keep it as long as the block runs, or until `lost` is set."""
        held = await self._take()
        keeper = asyncio.get_running_loop().create_task(self._keep(held), name=f"lease-{self._role}")
        try:
            yield held
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            if held.ours:
                await self._give_back()

    async def _take(self) -> Held:
        looked = asyncio.Event()

        def heard(_: Message) -> None:
            looked.set()

        # A role that is given back is heard of at once; one whose holder died is found by looking.
        subscription = await self._bus.subscribe(f"{self._bucket.prefix}{self._role}", heard)
        try:
            while True:
                looked.clear()
                try:
                    held = await self._try()
                    if held is not None:
                        return held
                except WrongLastSequence:
                    pass  # another standby was quicker
                except BusError as error:
                    _log.debug("lease %s: %s", self._role, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(looked.wait(), LOOK_S)
        finally:
            await subscription.stop()

    async def _try(self) -> Held | None:
        last = await self._bucket.last(self._role)
        if last is not None and not gone(last):
            entry = self._bucket.entry(last)
            if entry is not None and entry.value.holder != self._holder:
                return None
        asked_at = self._clock.monotonic()
        # The bucket is a file: its revisions only rise, also over a restart of the broker, and so do epochs.
        revision = await self._bucket.update(self._role, self._lease(), revision=last.sequence if last else 0, ttl_s=TTL_S)
        return Held(epoch=revision, until=asked_at + TTL_S - MARGIN_S, clock=self._clock)

    async def _keep(self, held: Held) -> None:
        try:
            await self._renew(held)
        except Exception:
            _log.exception("lease %s: its keeper failed", self._role)
        held.lost.set()

    async def _renew(self, held: Held) -> None:
        """As long as it goes well."""
        revision = held.epoch
        wait_s = RENEW_S
        while held.left_s > 0:
            await asyncio.sleep(max(0.0, min(wait_s, held.left_s)))
            asked_at = self._clock.monotonic()
            try:
                revision = await asyncio.wait_for(
                    self._bucket.update(self._role, self._lease(), revision=revision, ttl_s=TTL_S), max(0.01, held.left_s)
                )
                held.extend(asked_at)
                wait_s = RENEW_S
            except WrongLastSequence:
                found = await self._own_revision(held)
                if found is None:
                    return
                revision, wait_s = found, 0.0  # our own write, whose acknowledgement was lost
            except (BusError, TimeoutError):
                wait_s = RETRY_S  # the broker is away: ours until the time to live has passed

    async def _own_revision(self, held: Held) -> int | None:
        """The key's revision if we wrote it, None if somebody else did, or nobody can say in time."""
        while held.left_s > 0:
            try:
                entry = await asyncio.wait_for(self._bucket.get(self._role), max(0.01, held.left_s))
            except (BusError, TimeoutError):
                await asyncio.sleep(RETRY_S)
                continue
            return entry.revision if entry is not None and entry.value.holder == self._holder else None
        return None

    async def _give_back(self) -> None:
        try:
            await asyncio.wait_for(self._bucket.delete(self._role), timeout=1.0)
        except (BusError, TimeoutError) as error:
            _log.info("lease %s was not given back: %s", self._role, error)

    def _lease(self) -> Lease:
        return Lease(holder=self._holder, role=self._role, at=self._clock.now())
