"""Calls that wait: first in, first out within a function; between tenants, and between a tenant's functions, whoever was
served least goes next. Served is counted in seconds of slots, not in calls: ten calls of a minute are no fairer than ten of a
millisecond. Sync calls and jobs share it.
"""

from collections import deque
from heapq import heappop, heappush, heapreplace
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: What a function's call is taken to cost before one has ended, and at least; and at most, so that a function that runs for
#: hours does not put its tenant off for days.
COST_S_MIN: Final = 0.001
COST_S_MAX: Final = 60.0
#: A new duration counts so much against what was known: about the last ten calls decide.
WEIGHT: Final = 0.2


class Tenant(Generic[T]):
    __slots__ = ("floor", "name", "queued", "ready", "served")

    def __init__(self, name: str) -> None:
        self.name = name
        self.served = 0.0
        self.floor = 0.0
        """What the last served function had been served: whoever joins starts from there, and has saved up nothing."""
        self.ready: list[tuple[float, int, Line[T]]] = []
        self.queued = False


class Line(Generic[T]):
    """The calls of one function."""

    __slots__ = ("blocked", "cost_s", "items", "name", "queued", "served", "tenant")

    def __init__(self, tenant: Tenant[T], name: str) -> None:
        self.tenant = tenant
        self.name = name
        """`tenant.function`."""
        self.items: deque[T] = deque()
        self.served = 0.0
        self.cost_s = COST_S_MIN
        self.queued = False
        """Whether it is in its turn."""
        self.blocked = False
        """Whether its head was looked at and has to wait for something of its own."""

    def took(self, seconds: float) -> None:
        """One call occupied a slot for so long; it was charged with the estimate before."""
        actual = min(max(seconds, COST_S_MIN), COST_S_MAX)
        self.served += actual - self.cost_s
        self.tenant.served += actual - self.cost_s
        self.cost_s += WEIGHT * (actual - self.cost_s)


class FairQueue(Generic[T]):
    def __init__(self) -> None:
        self._tenants: dict[str, Tenant[T]] = {}
        self._ready: list[tuple[float, int, Tenant[T]]] = []
        self._floor = 0.0
        self._order = 0
        self._blocked: deque[Line[T]] = deque()
        self.lines: dict[str, Line[T]] = {}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def line(self, tenant: str, name: str) -> Line[T]:
        line = self.lines.get(name)
        if line is None:
            owner = self._tenants.get(tenant)
            if owner is None:
                owner = self._tenants[tenant] = Tenant(tenant)
            line = self.lines[name] = Line(owner, name)
        return line

    def push(self, line: Line[T], item: T, *, first: bool = False) -> None:
        """Join the line; `first`: it has waited its turn before."""
        if first:
            line.items.appendleft(item)
        else:
            line.items.append(item)
        self.count += 1
        if not line.queued and not line.blocked:
            self._queue(line)

    def _queue(self, line: Line[T]) -> None:
        tenant = line.tenant
        line.queued = True
        line.served = max(line.served, tenant.floor)
        self._order += 1
        heappush(tenant.ready, (line.served, self._order, line))
        if not tenant.queued:
            tenant.queued = True
            tenant.served = max(tenant.served, self._floor)
            heappush(self._ready, (tenant.served, self._order, tenant))

    def head(self) -> Line[T] | None:
        """Whose turn it is: its first item is `line.items[0]`."""
        while self._ready:
            tenant = self._ready[0][2]
            while tenant.ready:
                line = tenant.ready[0][2]
                if line.items:
                    return line
                heappop(tenant.ready)
                line.queued = False
            heappop(self._ready)
            tenant.queued = False
        return None

    def take(self, line: Line[T]) -> T:
        """The head of the line whose turn it is, charged with what such a call is taken to cost."""
        tenant = line.tenant
        self.count -= 1
        item = line.items.popleft()
        tenant.floor, self._floor = line.served, tenant.served
        line.served += line.cost_s
        tenant.served += line.cost_s
        self._order += 1
        if line.items:
            heapreplace(tenant.ready, (line.served, self._order, line))
        else:
            heappop(tenant.ready)
            line.queued = False
        if tenant.ready:
            heapreplace(self._ready, (tenant.served, self._order, tenant))
        else:
            heappop(self._ready)
            tenant.queued = False
        return item

    def block(self, line: Line[T]) -> None:
        """The line whose turn it is cannot go now: the next one is looked at."""
        tenant = line.tenant
        heappop(tenant.ready)
        line.queued = False
        line.blocked = True
        self._blocked.append(line)
        if not tenant.ready:
            heappop(self._ready)
            tenant.queued = False

    def unblock(self, limit: int) -> list[Line[T]]:
        """Let blocked lines be looked at again, the longest blocked first, so many at most."""
        freed: list[Line[T]] = []
        while self._blocked and len(freed) < limit:
            line = self._blocked.popleft()
            line.blocked = False
            if line.items:
                self._queue(line)
            freed.append(line)
        return freed

    def unblock_line(self, line: Line[T]) -> None:
        """The one thing it waited for has happened."""
        if line.blocked:
            self._blocked.remove(line)
            line.blocked = False
            if line.items:
                self._queue(line)

    @property
    def blocked(self) -> list[Line[T]]:
        return list(self._blocked)

    def discard(self, line: Line[T], item: T) -> bool:
        """Take an item out of turn: it was cancelled."""
        try:
            line.items.remove(item)
        except ValueError:
            return False
        self.count -= 1
        return True

    def forget(self, name: str) -> None:
        """A function is gone."""
        line = self.lines.get(name)
        if line is not None and not line.items and not line.queued and not line.blocked:
            del self.lines[name]
