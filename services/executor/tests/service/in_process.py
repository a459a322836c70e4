"""A backend whose functions are coroutines in this process: real units, pools and cancellation, no sandbox."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hearth_contracts.functions import FunctionVersion
from hearth_executor.errors import NoRoom
from hearth_executor.ports import CallEvents, Finished, Invocation, PoolReport, Usage

Function = Callable[["Calling"], Awaitable[Finished | bytes]]


@dataclass(frozen=True, slots=True)
class Calling:
    """What a test's function sees."""

    invocation: Invocation
    events: CallEvents

    async def body(self) -> bytes:
        if isinstance(self.invocation.body, bytes):
            return self.invocation.body
        return b"".join([chunk async for chunk in self.invocation.body])


class InProcessUnit:
    def __init__(self, key: str, function: Function, number: int) -> None:
        self.id = f"unit-{number}"
        self.key = key
        self.cold_phases: Mapping[str, float] = {"create": 1.0, "code": 0.5, "import": 2.0}
        self._function = function
        self.calls = 0

    async def call(self, invocation: Invocation, events: CallEvents) -> Finished:
        self.calls += 1
        began = time.monotonic()
        left = None if invocation.deadline is None else max(0.0, invocation.deadline - time.time())
        try:
            async with asyncio.timeout(left):
                answer = await self._function(Calling(invocation, events))
        except TimeoutError:
            answer = Finished("timeout", error_message="the call was stopped at its time limit")
        if isinstance(answer, Finished):
            return answer
        wall_ms = (time.monotonic() - began) * 1000
        return Finished(None, answer, usage=Usage(wall_ms=wall_ms, bytes_in=invocation.body_size, bytes_out=len(answer)))


class InProcess:
    """`functions` by name. What a test asks of it afterwards: `made`, `given_back`."""

    name = "in-process"
    images: Mapping[str, str] = {"python": "none"}
    memory_free_mb = 1024
    notes: Mapping[str, str] = {"engine": "this process"}

    def __init__(self, functions: Mapping[str, Function], *, units_max: int = 64) -> None:
        self._functions = functions
        self._units_max = units_max
        self._idle: dict[str, list[InProcessUnit]] = {}
        self._units = 0
        self.made: list[InProcessUnit] = []
        self.given_back: list[tuple[str, bool]] = []
        self.kept_warm: list[str] = []
        self.retired: list[str] = []
        self.code: dict[str, bytes] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._idle.clear()

    def take(self, version: FunctionVersion) -> InProcessUnit | None:
        idle = self._idle.get(version.key)
        return idle.pop() if idle else None

    async def make(self, version: FunctionVersion, code: Callable[[], AsyncIterator[bytes]]) -> InProcessUnit:
        if self._units >= self._units_max:
            raise NoRoom("every unit is busy")
        self._units += 1
        self.code[version.key] = b"".join([chunk async for chunk in code()])
        unit = InProcessUnit(version.key, self._functions[version.function], len(self.made))
        self.made.append(unit)
        return unit

    def give_back(self, unit: InProcessUnit, *, reusable: bool) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.given_back.append((unit.id, reusable))
        if reusable:
            self._idle.setdefault(unit.key, []).append(unit)
        else:
            self._units -= 1

    def report(self) -> PoolReport:
        return PoolReport(warm={key: len(idle) for key, idle in self._idle.items() if idle}, generic={}, units=self._units)

    def keep_warm(self, version: FunctionVersion, code: Callable[[], AsyncIterator[bytes]]) -> None:
        self.kept_warm.append(version.key)

    def retire(self, key: str) -> None:
        self.retired.append(key)
