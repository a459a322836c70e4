"""The model: one scheduler's view of its executors, reports and ends that arrive late, acknowledgements in any order.

Never is more placed than an executor can take, never does a call wait while the view shows a place for it, and when
everything has been heard the view is the truth.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hearth_contracts.fleet import Capacity
from hearth_scheduler.domain.fleet import Fleet, Live
from hearth_scheduler.domain.placement import Hindrance, Job, Placed, Wait, Wants, Why, place
from hearth_scheduler.domain.queues import FairQueue

FUNCTIONS = ("acme.f", "acme.g", "other.h")
NAMES = ("a-00000000", "b-00000000")
ROOM = 2


@dataclass
class Real:
    """An executor as it is."""

    id: str
    slots: int
    stream: deque[tuple[int, str, str]] = field(default_factory=deque)
    """Runs that it has not taken in: (sequence, job, key)."""
    accepted: int = 0
    running: dict[str, str] = field(default_factory=dict)
    waiting: deque[tuple[str, str]] = field(default_factory=deque)
    idle: dict[str, int] = field(default_factory=dict)
    said: deque[tuple[str, Any]] = field(default_factory=deque)
    """What it has said and the scheduler has not heard, in order."""

    def report(self) -> Capacity:
        assigned = dict(self.idle)
        for key in self.running.values():
            assigned[key] = assigned.get(key, 0) + 1
        return Capacity(
            executor=self.id, name=self.id, at=0, slots=self.slots, free=self.slots - len(self.running),
            queue_room=max(0, ROOM - len(self.waiting)), backends=("container",), runtimes=("python",), memory_free_mb=512,
            warm={k: v for k, v in self.idle.items() if v}, assigned={k: v for k, v in assigned.items() if v},
            generic={"python/128": 1}, accepted_sync=self.accepted, running=len(self.running),
        )  # fmt: skip

    def take_in(self) -> None:
        sequence, job, key = self.stream.popleft()
        self.accepted = sequence
        if len(self.running) < self.slots:
            self.start(job, key)
        else:
            self.waiting.append((job, key))

    def start(self, job: str, key: str) -> None:
        self.running[job] = key
        if self.idle.get(key):
            self.idle[key] -= 1

    def end(self, job: str) -> None:
        key = self.running.pop(job)
        self.idle[key] = self.idle.get(key, 0) + 1
        if self.waiting:
            self.start(*self.waiting.popleft())
        self.said.append(("ended", job))

    @property
    def load(self) -> int:
        return len(self.stream) + len(self.running) + len(self.waiting)


class CapacityMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.queue: FairQueue[tuple[str, Wants]] = FairQueue()
        self.real = {name: Real(name, slots) for name, slots in zip(NAMES, (2, 3), strict=True)}
        self.storing: list[tuple[str, Live, int]] = []
        self.sequence = 0
        self.number = 0
        self.now = 0.0
        for real in self.real.values():
            self.fleet.heard(real.report(), self.now)
            self.fleet.admitted(real.id)

    def wants(self, function: str) -> Wants:
        return Wants(f"{function}.1", function, ("python", "container", ()), "python/128", 128, 4, keeps=True)

    def place_all(self) -> None:
        self.queue.unblock(100)
        while (line := self.queue.head()) is not None:
            job, wants = line.items[0]
            decision = place(Job(wants), self.fleet, self.now)
            if isinstance(decision, Wait):
                if decision.hindrance is Hindrance.BUSY:
                    # Never while the view shows a free slot.
                    assert all(executor.free <= 0 for executor in self.fleet.executors.values())
                else:
                    assert decision.hindrance is Hindrance.MAXIMUM
                    assert self.fleet.running[wants.function] >= wants.running_max
                self.queue.block(line)
                continue
            assert isinstance(decision, Placed)
            self.queue.take(line)
            real = self.real[decision.executor.id]
            limit = real.slots + (ROOM if decision.why is Why.QUEUE else 0)
            assert real.load < limit, f"{real.load} on {real.slots} slots, {decision.why}"
            running = sum(1 for r in self.real.values() for key in self.all_keys(r) if key == wants.key)
            assert running < wants.running_max
            live = self.fleet.reserve(
                decision.executor, job, key=wants.key, function=wants.function,
                generic="python/128" if decision.why is Why.GENERIC else "", sync=True, keeps=True, now=self.now,
            )  # fmt: skip
            self.sequence += 1
            real.stream.append((self.sequence, job, wants.key))
            self.storing.append((job, live, self.sequence))

    @staticmethod
    def all_keys(real: Real) -> list[str]:
        return [key for _, _, key in real.stream] + list(real.running.values()) + [key for _, key in real.waiting]

    @rule(function=st.sampled_from(FUNCTIONS), count=st.integers(1, 4))
    def submit(self, function: str, count: int) -> None:
        for _ in range(count):
            self.number += 1
            tenant = function.partition(".")[0]
            self.queue.push(self.queue.line(tenant, function), (f"j{self.number}", self.wants(function)))
        self.place_all()

    @rule(which=st.integers(0, 20))
    @precondition(lambda self: self.storing)
    def acknowledged(self, which: int) -> None:
        job, live, sequence = self.storing.pop(which % len(self.storing))
        self.fleet.stored(job, live, sequence)

    @rule(name=st.sampled_from(NAMES))
    def take_in(self, name: str) -> None:
        if self.real[name].stream:
            self.real[name].take_in()

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 5))
    def end(self, name: str, which: int) -> None:
        real = self.real[name]
        if real.running:
            real.end(list(real.running)[which % len(real.running)])

    @rule(name=st.sampled_from(NAMES))
    def report(self, name: str) -> None:
        self.real[name].said.append(("report", self.real[name].report()))

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 5))
    def hear(self, name: str, count: int) -> None:
        said = self.real[name].said
        for _ in range(min(count, len(said))):
            kind, what = said.popleft()
            if kind == "report":
                self.fleet.heard(what, self.now)
            else:
                self.fleet.ended(what, own=True)
        self.place_all()

    @invariant()
    def counts_never_go_below_nothing(self) -> None:
        for executor in self.fleet.executors.values():
            assert executor.storing >= 0
            assert all(count >= 0 for count in executor.generic_unseen.values())
        for units in self.fleet.units.values():
            for unit in units.values():
                assert unit.placed >= unit.unseen >= 0
        assert all(count > 0 for count in self.fleet.running.values())

    def teardown(self) -> None:
        """Let everything end and be heard: then all have run, and the view is the truth."""
        for _ in range(1000):
            for job, live, sequence in self.storing:
                self.fleet.stored(job, live, sequence)
            self.storing.clear()
            for real in self.real.values():
                while real.stream:
                    real.take_in()
                for job in list(real.running):
                    real.end(job)
                self.report(real.id)
                self.hear(real.id, 1000)
            if not len(self.queue) and not any(real.load for real in self.real.values()):
                break
        assert not len(self.queue)
        assert not self.fleet.live
        assert not self.fleet.running
        for real in self.real.values():
            executor = self.fleet.executors[real.id]
            assert executor.free == real.slots
            assert executor.known


TestCapacity = CapacityMachine.TestCase
TestCapacity.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
