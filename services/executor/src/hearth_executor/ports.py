"""What the executor needs from a backend that runs functions.

The service asks for a unit, calls it and gives it back; it never learns what a unit is made of. The container backend
is in `containers/`, and whatever implements `Backend` passes `tests/backend_suite.py`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hearth_contracts.functions import FunctionVersion


@dataclass(frozen=True, slots=True)
class Invocation:
    """One attempt at one call, as the function will see it."""

    job: str
    attempt: int
    deadline: float | None
    """Unix time after which the call is stopped; None: no limit."""
    content_type: str
    body: bytes | AsyncIterator[bytes]
    """The event: whole when small, else chunks in order, pulled as the sandbox takes them."""
    body_size: int
    traceparent: str
    http: Mapping[str, object] | None = None
    """Method, path, query and headers, when called as a plain HTTP endpoint."""


class BodyWriter(Protocol):
    """Where a result too large for a message goes, chunk by chunk. A slow writer slows the function down."""

    async def write(self, chunk: bytes) -> None: ...


class OutputFile(Protocol):
    """An output file on its way, chunk by chunk. A slow one slows down the function that writes it, and nobody else."""

    bytes_max: int
    """What all files of the call may have together."""

    async def write(self, chunk: bytes) -> None:
        """Raises `OutputTooLarge` when that is passed: nothing of this file is kept then."""
        ...

    async def finish(self) -> None:
        """It is whole. A file that is never finished is not kept."""
        ...


@dataclass(frozen=True, slots=True)
class CallEvents:
    """What a running call tells before it ends. The callbacks never raise, but for `output`, and never block."""

    log: Callable[[str, bytes], None]
    """(stream, bytes): stream is `stdout`, `stderr` or `log`; called within 1 s of the function printing."""
    emit: Callable[[str, bytes, str], Awaitable[None]]
    """(subject, data, content type): an event the function emitted; the function waits until it is accepted."""
    large_result: Callable[[int | None], Awaitable[BodyWriter]]
    """Asked once, when a result passes the inline limit; size where known."""
    output: Callable[[str, str], OutputFile] | None = None
    """(name, content type or empty): a file the function opened. Raises `OutputRefused`, whose words the function gets. None:
    no output files are taken."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost, read from the kernel's own files."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    memory_peak_mb: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a call ended. `reason` is None for success, else a `hearth_contracts.enums.Reason` value."""

    reason: str | None
    result: bytes = b""
    """The result when it stayed inline; empty when `large_result` was asked for."""
    content_type: str = "application/json"
    http_status: int | None = None
    http_headers: tuple[tuple[str, str], ...] = ()
    error_type: str = ""
    error_message: str = ""
    traceback: str = ""
    """Trimmed to the user's frames."""
    usage: Usage = field(default_factory=Usage)
    log_truncated: bool = False


class Unit(Protocol):
    """A sandbox that belongs to one function version. One call at a time unless the spec's `concurrency` says more."""

    @property
    def id(self) -> str: ...

    @property
    def cold_phases(self) -> Mapping[str, float]:
        """Milliseconds per phase (create, boot, code, import) when this unit was made ready for its first call; empty
        for a unit that was warm."""
        ...

    async def call(self, invocation: Invocation, events: CallEvents) -> Finished:
        """Run one call. Ends within timeout + grace + 1 s whatever the function does. Cancelling this coroutine stops
        the function (TERM, grace, KILL) before it returns."""
        ...


@dataclass(frozen=True, slots=True)
class PoolReport:
    """Both tiers of a backend, as capacity reports and `GET /v1/system` show them."""

    warm: Mapping[str, int]
    """Idle units per `tenant.function.version`."""
    generic: Mapping[str, int]
    """Idle booted units per `runtime/memory class`."""
    units: int
    """Every living sandbox, busy or idle."""


class Backend(Protocol):
    """Sandboxes of one kind. An async context manager: entering starts the pool, leaving destroys every unit."""

    @property
    def name(self) -> str: ...

    def take(self, version: FunctionVersion) -> Unit | None:
        """A warm idle unit of this version at once, or None. O(1)."""
        ...

    async def make(self, version: FunctionVersion, code: Callable[[], AsyncIterator[bytes]]) -> Unit:
        """A unit for this version: a generic one that takes the code, else a new one. `code` yields the bundle's bytes
        and is called only when needed. Raises `SandboxError` with a reason when the sandbox or the code will not start."""
        ...

    def give_back(self, unit: Unit, *, reusable: bool) -> None:
        """Return a unit after a call; it is kept warm, or destroyed when it may not serve again. O(1)."""
        ...

    def report(self) -> PoolReport: ...
