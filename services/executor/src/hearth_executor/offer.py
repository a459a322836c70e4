"""The backends this executor has. One that cannot start yet is tried again; meanwhile the executor lives and says why."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol, Self

from hearth_contracts.enums import BackendChoice
from hearth_contracts.functions import FunctionHead, FunctionVersion
from hearth_executor.bodies import Code
from hearth_executor.errors import BackendUnavailable
from hearth_executor.ports import Backend, PoolReport
from hearth_kit.background import Background
from hearth_kit.registry import Registry

_log = logging.getLogger(__name__)

#: Between two attempts to start a backend whose engine is missing or stopped.
AGAIN_S: Final = 5.0
#: Notes are for people: made anew this often, however many reports carry them.
NOTES_S: Final = 1.0
#: A version's idle sandboxes outlive it by so much: calls placed before the new version was known still come.
RETIRE_AFTER_S: Final = 10.0


class Kept(Backend, Protocol):
    """A backend with what an executor uses of it beside calls."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    @property
    def images(self) -> Mapping[str, str]: ...

    @property
    def memory_free_mb(self) -> int: ...

    @property
    def notes(self) -> Mapping[str, str]: ...

    def report(self) -> PoolReport: ...

    def keep_warm(self, version: FunctionVersion, code: Code) -> None: ...

    def retire(self, key: str) -> None: ...


class Backends:
    """Implements `fleet_report.Offer` and `runs.Backends` over the one backend of this release."""

    def __init__(self, *, make: Callable[[], Kept]) -> None:
        self._make = make
        self._hooks: list[Callable[[], None]] = []
        self._backend: Kept | None = None
        self._missing = "not started yet"
        self._notes: Mapping[str, str] = {}
        self._notes_at = float("-inf")
        self._stack = AsyncExitStack()

    def __call__(self, version: FunctionVersion) -> Backend | None:
        backend = self._backend
        if backend is None or version.spec.backend is BackendChoice.WASM:
            return None
        return backend if version.spec.runtime.value in backend.images else None

    @property
    def backends(self) -> tuple[Backend, ...]:
        return () if self._backend is None else (self._backend,)

    @property
    def runtimes(self) -> tuple[str, ...]:
        return () if self._backend is None else tuple(sorted(self._backend.images))

    @property
    def memory_free_mb(self) -> int:
        return 0 if self._backend is None else self._backend.memory_free_mb

    @property
    def notes(self) -> Mapping[str, str]:
        if self._backend is None:
            return {"container": self._missing}
        now = asyncio.get_running_loop().time()
        if now - self._notes_at > NOTES_S:
            self._notes, self._notes_at = self._backend.notes, now
        return self._notes

    def on_start(self, hook: Callable[[], None]) -> None:
        """Call `hook` when a backend that was missing has started."""
        self._hooks.append(hook)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator["Backends"]:
        """Started when the block begins if that is possible, else as soon as it is; every sandbox is gone when it has ended."""
        trying: asyncio.Task[None] | None = None
        if not await self._start():
            trying = asyncio.get_running_loop().create_task(self._keep_trying(), name="backend")
        try:
            yield self
        finally:
            if trying is not None:
                trying.cancel()
                await asyncio.gather(trying, return_exceptions=True)
            self._backend = None
            await self._stack.aclose()

    async def _start(self) -> bool:
        try:
            self._backend = await self._stack.enter_async_context(self._make())
        except BackendUnavailable as error:
            said = f"{error}; mend it with: {error.fix}" if error.fix else str(error)
            if said != self._missing:
                _log.warning("no containers: %s", said)
            self._missing = said
            return False
        for hook in self._hooks:
            hook()
        return True

    async def _keep_trying(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            if await self._start():
                return

    # The registry's changes

    def keep_warm(self, version: FunctionVersion, code: Code) -> None:
        if self._backend is not None and self(version) is not None:
            self._backend.keep_warm(version, code)

    def retire(self, key: str) -> None:
        if self._backend is not None:
            self._backend.retire(key)


class Versions:
    """Follows the registry: the current version of each function is kept warm as it asks, the ones before it go."""

    def __init__(self, *, registry: Registry, backends: Backends, code_of: Callable[[str], Code]) -> None:
        self._registry = registry
        self._backends = backends
        self._code_of = code_of
        self._tasks = Background("versions")
        self._current: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()

    def changed(self, head: FunctionHead) -> None:
        name = f"{head.tenant}.{head.function}"
        before = self._current.get(name)
        now = 0 if head.deleted else head.current
        self._current[name] = now
        if before and before != now:
            self._loop.call_later(RETIRE_AFTER_S, self._retire, name, before)
        if now and before != now:
            self._tasks.start(self._keep(head))

    def again(self) -> None:
        """A backend has come: everything that wants to be kept warm is asked for once more."""
        for head in self._registry.heads():
            if not head.deleted:
                self._tasks.start(self._keep(head))

    def _retire(self, name: str, version: int) -> None:
        if self._current.get(name) != version:
            self._backends.retire(f"{name}.{version}")

    async def _keep(self, head: FunctionHead) -> None:
        version = await self._registry.version(head.tenant, head.function, head.current)
        current = self._current.get(f"{head.tenant}.{head.function}") == head.current
        if version is not None and current and version.spec.scale.min_warm:
            self._backends.keep_warm(version, self._code_of(version.code.object))
