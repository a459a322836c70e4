"""What executors and other processes say of themselves."""

from typing import Final

from pydantic import Field

from hearth_contracts.calls import Meta


class Capacity(Meta):
    """An executor's report (`capacity.v1`)."""

    executor: str
    name: str
    at: float
    slots: int
    """Calls it runs at once."""
    free: int
    queue_room: int = 0
    """Calls it takes in ahead of a freed slot."""
    draining: bool = False
    memory_free_mb: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    backends: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    warm: dict[str, int] = Field(default_factory=dict)
    """Idle units per `tenant.function.version`."""
    assigned: dict[str, int] = Field(default_factory=dict)
    """Living units per `tenant.function.version`, busy or idle."""
    generic: dict[str, int] = Field(default_factory=dict)
    """Idle booted units per `runtime/memory class`."""
    units: int = 0
    accepted: int = 0
    """Highest RUNS sequence accepted."""
    accepted_sync: int = 0
    """Highest RUNS_SYNC sequence accepted."""
    epoch: int = 0
    """Highest scheduler epoch seen."""
    running: int = 0
    calls: int = 0
    """Finished since the start."""
    backend_notes: dict[str, str] = Field(default_factory=dict)
    """For people: which link and engine and why, what is off."""


#: A persister's notes of its stores are named so, and begin with one of these words (or say that it stands by).
STORE_NOTE: Final = "store."
STORE_WRITING: Final = "writing"
STORE_DEGRADED: Final = "degraded"


class Presence(Meta):
    """A process lives (`presence.v1`)."""

    service: str
    instance: str
    pid: int
    started_at: float
    at: float
    ready: bool = True
    notes: dict[str, str] = Field(default_factory=dict)


class Control(Meta):
    """Asks an executor (`control.v1`, request and reply): stop a job, or take no more work."""

    verb: str
    """`cancel` or `drain`."""
    job: str = ""


class ControlDone(Meta):
    """The answer (`control-done.v1`)."""

    done: bool
    note: str = ""
