"""The seam between the pool and what lives in a container.

The pool makes containers, keeps them, and destroys them; it knows of a sandbox only what stands here. `sandbox.py`
implements it over either link. Order of calls: `boot` (once, by the pool's refill), `load` (once, at assignment),
`call` (any number), `close` (once; any time).
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from hearth_contracts.functions import FunctionVersion
from hearth_executor.containers.container import Container
from hearth_executor.ports import CallEvents, Finished, Invocation


class Sandbox(Protocol):
    """One container's inside, over its link, after the handshake."""

    @property
    def container(self) -> Container: ...

    @property
    def usable(self) -> bool:
        """False once it may not serve another call: the link is lost, processes were left over, memory ran out."""
        ...

    @property
    def settled(self) -> bool:
        """False while the last call's sandbox is still being put in order: a next call would wait for that."""
        ...

    @property
    def phases(self) -> Mapping[str, float]:
        """Milliseconds per phase of `load`."""
        ...

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Called each time it has been put in order after a call, or has turned out to be spent: look at `usable`."""
        ...

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Called once, when the link goes while no `close` was asked for."""
        ...

    async def load(self, version: FunctionVersion, code: AsyncIterator[bytes]) -> int:
        """Stream the code in and import it. Returns the unpacked size in bytes. Raises `SandboxError`."""
        ...

    async def call(self, invocation: Invocation, events: CallEvents) -> Finished: ...

    async def close(self) -> None:
        """Let go of the link. Never blocks on the container, which is killed by the pool."""
        ...


class Boot(Protocol):
    """Connects to the supervisor in a container and shakes hands; raises `SandboxError` when that fails."""

    async def __call__(self, container: Container) -> Sandbox: ...
