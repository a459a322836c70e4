"""Closed sets of words. Their values are on the wire and in the stores: add, never rename."""

from enum import StrEnum


class State(StrEnum):
    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"

    @property
    def final(self) -> bool:
        return self in (State.SUCCESS, State.FAILED)


class Reason(StrEnum):
    """Why a call FAILED."""

    ERROR = "error"
    TIMEOUT = "timeout"
    OOM = "oom"
    RESOURCE = "resource"
    RECURSION = "recursion"
    LOST = "lost"
    CANCELLED = "cancelled"
    BAD_RESULT = "bad_result"
    IMAGE = "image"
    REJECTED = "rejected"


class Lane(StrEnum):
    SYNC = "sync"
    ASYNC = "async"


class Start(StrEnum):
    WARM = "warm"
    COLD = "cold"


class Runtime(StrEnum):
    PYTHON = "python"
    NODE = "node"
    GO = "go"
    CPP = "cpp"
    WASM = "wasm"


class Isolation(StrEnum):
    PROCESS = "process"
    REUSE = "reuse"
    FRESH = "fresh"


class BackendChoice(StrEnum):
    AUTO = "auto"
    CONTAINER = "container"
    WASM = "wasm"


class Persist(StrEnum):
    ALL = "all"
    SUCCESS = "success"
    OFF = "off"


class FunctionState(StrEnum):
    BUILDING = "BUILDING"
    READY = "READY"
    FAILED = "FAILED"


class OutcomeKind(StrEnum):
    """Why a whole job travels back to the scheduler."""

    FAILED = "failed"
    """The attempt failed and the policy may allow another."""
    HANDED_BACK = "handed_back"
    """The executor drains: no attempt is burnt."""
    REFUSED = "refused"
    """No slot, a stale epoch or no such backend here: no attempt is burnt."""
