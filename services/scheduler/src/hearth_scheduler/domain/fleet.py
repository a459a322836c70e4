"""What the scheduler knows of the executors: what they reported, and what it has placed there since.

A report is up to ten milliseconds old while work flows, and calls end in the middle of one. So two counts run side by side,
each never more than the truth: what the report says is free, less what was placed and is not in it yet; and all slots, less
every dispatch whose end was not heard. The larger one counts. The same holds for the sandboxes of one function version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hearth_contracts.fleet import Capacity

#: Silence after which an executor gets nothing new (three missed reports), and after which it is given up.
SUSPECT_S: Final = 3.0
DEAD_S: Final = 10.0
#: A dispatch that an executor still has not reported by now was delivered out of turn: it no longer counts as unseen.
UNSEEN_S_MAX: Final = 5.0
#: A dispatch that its executor no longer reports as busy for so long has ended, although its end was not heard.
UNHEARD_S_MAX: Final = 3.0
#: Executors that were given up and are not believed any more.
BURIED_MAX: Final = 4096

Needs = tuple[str, str, tuple[tuple[str, str], ...]]
"""What an executor must have: runtime, backend, labels."""


@dataclass(slots=True, eq=False)
class Unit:
    """The sandboxes of one function version on one executor."""

    executor: "Executor"
    assigned: int = 0
    """Living ones, busy or idle, as reported, or as seen since."""
    warm: int = 0
    """Idle ones, as reported."""
    placed: int = 0
    """Dispatches not known to have ended."""
    unseen: int = 0
    """Of those, the ones that no report includes."""
    foreign: int = 0
    """Busy ones that nobody placed from here: an earlier scheduler's."""


@dataclass(slots=True, eq=False)
class Live:
    """A dispatch that is not known to have ended."""

    executor: "Executor"
    unit: Unit
    function: str
    generic: str
    """The kind of booted sandbox it will take, if it takes one."""
    sync: bool
    keeps: bool
    """Whether the sandbox outlives the call."""
    at: float
    sequence: int = 0
    """Its place in its stream; 0 until the broker has said."""
    unseen: bool = True


@dataclass(slots=True, eq=False)
class Executor:
    """One executor, as far as placement cares."""

    id: str
    heard_at: float
    slots: int = 0
    reported_free: int = 0
    reported_room: int = 0
    running: int = 0
    memory_free_mb: int = 0
    usable: bool = False
    """It takes calls: its consumers exist, it has a backend and does not drain."""
    admitted: bool = False
    draining: bool = False
    reported: bool = False
    runtimes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    generic: Mapping[str, int] = field(default_factory=dict)
    generic_unseen: dict[str, int] = field(default_factory=dict)
    accepted: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    """Highest sequence taken in; False: RUNS, True: RUNS_SYNC."""
    epoch: int = 0
    live: dict[str, Live] = field(default_factory=dict)
    unseen: dict[str, Live] = field(default_factory=dict)
    storing: int = 0
    """Dispatches on their way into the stream."""
    known: bool = True
    """Whether everything that runs there was placed from here."""
    owed: int = 0
    """Functions that wait for a free slot here: until they have one, nothing more goes into the short queue."""
    free: int = 0
    room: int = 0
    share: float = 0.0
    """Part of the slots that is free."""

    def refresh(self) -> None:
        """After any change of what goes into them."""
        unseen = len(self.unseen)
        if not self.usable:
            self.free = self.room = 0
        else:
            free = self.reported_free - unseen
            self.room = free + self.reported_room
            if self.known and self.slots - len(self.live) > free:
                free = self.slots - len(self.live)
            self.free = max(free, 0)
        self.share = self.free / self.slots if self.slots else 0.0


class Silence(NamedTuple):
    """What time alone has changed."""

    dead: tuple[str, ...]


class Fleet:
    """All executors. Plain data and bookkeeping: who decides is `placement.place`."""

    def __init__(self, *, suspect_s: float = SUSPECT_S, dead_s: float = DEAD_S) -> None:
        self.suspect_s = suspect_s
        self.dead_s = dead_s
        self.executors: dict[str, Executor] = {}
        self.units: dict[str, dict[str, Unit]] = {}
        """Per `tenant.function.version`, by executor."""
        self.running: dict[str, int] = {}
        """Dispatches not known to have ended, and what runs of an earlier scheduler's, per `tenant.function`."""
        self.live: dict[str, Live] = {}
        """By job."""
        self._matching: dict[Needs, list[Executor]] = {}
        self._buried: dict[str, None] = {}

    # Reading

    def matching(self, needs: Needs) -> list[Executor]:
        """Who could run it at all, busy or not."""
        found = self._matching.get(needs)
        if found is None:
            runtime, backend, labels = needs
            found = self._matching[needs] = [
                executor
                for executor in self.executors.values()
                if executor.usable
                and runtime in executor.runtimes
                and backend in executor.backends
                and all(executor.labels.get(key) == value for key, value in labels)
            ]
        return found

    @property
    def open_slots(self) -> int:
        return sum(max(executor.free, executor.room) for executor in self.executors.values())

    # What executors say

    def heard(self, report: Capacity, now: float) -> Executor | None:
        """Take a report in. None: this executor was given up, and lives on under another id."""
        executor = self.executors.get(report.executor)
        if executor is None:
            if report.executor in self._buried:
                return None
            executor = self.executors[report.executor] = Executor(report.executor, now)
        executor.heard_at = now
        executor.epoch = max(executor.epoch, report.epoch)
        before = (executor.usable, executor.runtimes, executor.backends, executor.labels)
        executor.reported = True
        executor.draining = report.draining
        executor.slots = report.slots
        executor.reported_free = report.free
        executor.reported_room = report.queue_room
        executor.running = report.running
        executor.memory_free_mb = report.memory_free_mb
        executor.runtimes = report.runtimes
        executor.backends = report.backends
        executor.labels = report.labels
        executor.generic = report.generic
        executor.accepted = {False: report.accepted, True: report.accepted_sync}
        self._see(executor, now)
        self._count_units(executor, report)
        self._admit(executor)
        if before != (executor.usable, executor.runtimes, executor.backends, executor.labels):
            self._matching.clear()
        return executor

    def _see(self, executor: Executor, now: float) -> None:
        accepted = executor.accepted
        for job, live in list(executor.unseen.items()):
            if (live.sequence and live.sequence <= accepted[live.sync]) or now - live.at > UNSEEN_S_MAX:
                self._seen(executor, job, live)
        # A run on its way into its stream may be there already: it counts as ours.
        ours = len(executor.live) - len(executor.unseen) + executor.storing
        executor.known = executor.running <= ours

    def _seen(self, executor: Executor, job: str, live: Live) -> None:
        del executor.unseen[job]
        live.unseen = False
        live.unit.unseen -= 1
        if live.generic:
            executor.generic_unseen[live.generic] -= 1

    def _count_units(self, executor: Executor, report: Capacity) -> None:
        for key, assigned in report.assigned.items():
            unit = self._unit(executor, key)
            unit.assigned = assigned
            unit.warm = report.warm.get(key, 0)
        for key, units in list(self.units.items()):
            unit = units.get(executor.id)
            if unit is None:
                continue
            if key not in report.assigned:
                unit.assigned = unit.warm = 0
            self._count_foreign(key, unit)
            if not (unit.assigned or unit.placed):
                self._drop_unit(key, executor.id)

    def _count_foreign(self, key: str, unit: Unit) -> None:
        busy = unit.assigned - unit.warm
        foreign = 0 if unit.executor.known else max(0, busy - (unit.placed - unit.unseen))
        if foreign != unit.foreign:
            self._run(key.rpartition(".")[0], foreign - unit.foreign)
            unit.foreign = foreign

    def _unit(self, executor: Executor, key: str) -> Unit:
        units = self.units.setdefault(key, {})
        unit = units.get(executor.id)
        if unit is None:
            unit = units[executor.id] = Unit(executor)
        return unit

    def _drop_unit(self, key: str, executor: str) -> None:
        units = self.units[key]
        unit = units.pop(executor)
        if unit.foreign:
            self._run(key.rpartition(".")[0], -unit.foreign)
        if not units:
            del self.units[key]

    def _run(self, function: str, change: int) -> None:
        count = self.running.get(function, 0) + change
        if count > 0:
            self.running[function] = count
        else:
            self.running.pop(function, None)

    def _admit(self, executor: Executor) -> None:
        executor.usable = (
            executor.admitted and executor.reported and not executor.draining and bool(executor.backends) and executor.slots > 0
        )
        executor.refresh()

    def admitted(self, executor_id: str) -> None:
        """Its consumers exist: it can be given work."""
        executor = self.executors.get(executor_id)
        if executor is not None and not executor.admitted:
            executor.admitted = True
            self._admit(executor)
            self._matching.clear()

    def expect(self, executor_id: str, now: float) -> None:
        """An executor that somebody knew before us: unless it is heard, it is given up like any other."""
        if executor_id not in self.executors and executor_id not in self._buried:
            self.executors[executor_id] = Executor(executor_id, now)

    # What is placed

    def reserve(
        self, executor: Executor, job: str, *, key: str, function: str, generic: str, sync: bool, keeps: bool, now: float
    ) -> Live:
        """Count a dispatch from the moment it is decided."""
        if job in self.live:
            self.ended(job, own=False)
        unit = self._unit(executor, key)
        live = Live(executor, unit, function, generic, sync, keeps, now)
        self.live[job] = live
        executor.live[job] = live
        executor.unseen[job] = live
        executor.storing += 1
        unit.placed += 1
        unit.unseen += 1
        if generic:
            executor.generic_unseen[generic] = executor.generic_unseen.get(generic, 0) + 1
        self._run(function, 1)
        executor.refresh()
        return live

    def stored(self, job: str, live: Live, sequence: int) -> None:
        """The broker has the run, at this place in its stream. The executor may have reported it already."""
        executor = live.executor
        executor.storing -= 1
        if self.live.get(job) is not live:
            return
        live.sequence = sequence
        if live.unseen and sequence <= executor.accepted[live.sync]:
            self._seen(executor, job, live)
        executor.refresh()

    def withdrawn(self, job: str, live: Live) -> None:
        """It was not stored after all."""
        live.executor.storing -= 1
        if self.live.get(job) is live:
            self.ended(job, own=False)

    def ended(self, job: str, *, own: bool) -> Live | None:
        """A dispatch has ended; `own`: its executor said so, and a sandbox of that version was there."""
        live = self.live.pop(job, None)
        if live is None:
            return None
        executor, unit = live.executor, live.unit
        if own and live.keeps and unit.assigned < unit.placed:
            unit.assigned = unit.placed  # made for it, and not in a report yet
        del executor.live[job]
        if live.unseen:
            self._seen(executor, job, live)
        unit.placed -= 1
        self._run(live.function, -1)
        executor.refresh()
        return live

    def memory_lost(self) -> None:
        """The sync lane's streams died with the broker: what no executor had taken in is gone, and sequences begin anew."""
        for executor in self.executors.values():
            executor.accepted[True] = 0
            for job, live in list(executor.unseen.items()):
                if live.sync and live.sequence:
                    self.ended(job, own=False)
            for live in executor.live.values():
                if live.sync:
                    live.sequence = 0

    def forget_placed(self) -> None:
        """This scheduler is no longer the active one: what runs is another's to count."""
        for job in list(self.live):
            self.ended(job, own=False)
        for executor in self.executors.values():
            executor.admitted = False
            executor.storing = executor.owed = 0
            executor.known = False
            self._admit(executor)
        self._matching.clear()

    # What time does

    def tick(self, now: float) -> Silence:
        """Called a few times a second. Who is dead is named until it is buried."""
        dead: list[str] = []
        for executor in self.executors.values():
            if now - executor.heard_at >= self.dead_s:
                dead.append(executor.id)
            else:
                self._reconcile(executor, now)
        return Silence(tuple(dead))

    def _reconcile(self, executor: Executor, now: float) -> None:
        """Let go of dispatches whose end was not heard (a message lost with a connection, a cancelled call), so that they
        do not hold a function's place for ever."""
        for job, live in list(executor.live.items()):
            unit = live.unit
            if live.unseen or now - live.at < UNHEARD_S_MAX or executor.heard_at - live.at < UNHEARD_S_MAX:
                continue
            if unit.placed - unit.unseen > unit.assigned - unit.warm:
                self.ended(job, own=False)

    def listen_anew(self, now: float) -> None:
        """Nobody could be heard for a while (the broker was away, or this scheduler was): their silence starts now."""
        for executor in self.executors.values():
            executor.heard_at = max(executor.heard_at, now)

    def bury(self, executor_id: str) -> None:
        """Given up for good. It comes back under another id."""
        executor = self.executors.pop(executor_id, None)
        self._buried[executor_id] = None
        if len(self._buried) > BURIED_MAX:
            del self._buried[next(iter(self._buried))]
        if executor is None:
            return
        for job in list(executor.live):
            self.ended(job, own=False)
        for key in [key for key, units in self.units.items() if executor_id in units]:
            self._drop_unit(key, executor_id)
        self._matching.clear()

    def condemn(self, executor_id: str) -> Executor | None:
        """It is dead: nothing more is placed there."""
        executor = self.executors.get(executor_id)
        if executor is not None:
            executor.admitted = False
            self._admit(executor)
            self._matching.clear()
        return executor
