"""A function as its owner describes it, and as the registry keeps it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from hearth_contracts import names
from hearth_contracts.enums import BackendChoice, FunctionState, Isolation, Persist, Runtime

#: A Python-like dotted path, then a name: `main:handle`, `pkg.mod:handle`. Lambda's `main.handle` is accepted too.
HANDLER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*(?:[:.][A-Za-z_][A-Za-z0-9_]*)")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

CODE_PACKED_BYTES_MAX = 50 * 1024 * 1024
CODE_UNPACKED_BYTES_MAX = 250 * 1024 * 1024

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


class Strict(BaseModel):
    """What people write: an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scale(Strict):
    min_warm: int = Field(default=0, ge=0, le=1000, description="Warm copies kept ready, whatever the demand.")
    max: int = Field(
        default=20, ge=1, le=10_000, description="Calls of this function that may run at once on the whole platform."
    )
    idle_s: float = Field(default=300, ge=1, le=86_400, description="Seconds an idle copy stays warm.")


class Retry(Strict):
    attempts: int = Field(default=1, ge=1, le=100, description="How often a call may run in all.")
    backoff_s: tuple[float, ...] = Field(
        default=(1, 5, 30), max_length=20, description="Seconds to wait before each further attempt."
    )

    @field_validator("backoff_s")
    @classmethod
    def _bounded(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= wait <= 86_400 for wait in value):
            raise ValueError("give one to twenty waits between 0 and 86400 seconds")
        return value


class Queue(Strict):
    depth: int = Field(default=10_000, ge=1, le=1_000_000, description="Calls that may wait; one more is answered 429.")


class FunctionSpec(Strict):
    """`function.yaml`. Keys of features not offered yet are known by `NOT_AVAILABLE` and refused by name."""

    name: Name
    runtime: Runtime = Runtime.PYTHON
    handler: str = Field("main:handle", max_length=200)
    memory_mb: int = Field(128, ge=32, le=32_768)
    cpu: float = Field(default=1.0, gt=0, le=64, description="Processors, as a share of one: 0.5 is half.")
    timeout_s: float = Field(30, ge=0, le=7 * 86_400, description="0: no limit.")
    isolation: Isolation = Isolation.PROCESS
    backend: BackendChoice = BackendChoice.AUTO
    concurrency: int = Field(default=1, ge=1, le=1, description="Calls at once in one sandbox.")
    scale: Scale = Scale()
    env: dict[str, str] = Field(default_factory=dict, max_length=200)
    retry: Retry = Retry()
    queue: Queue = Queue()
    placement: dict[str, str] = Field(default_factory=dict, max_length=20, description="Labels the executor must carry.")
    persist: Persist = Persist.ALL

    @field_validator("handler")
    @classmethod
    def _handler(cls, value: str) -> str:
        if HANDLER.fullmatch(value) is None:
            raise ValueError("write the handler as module:function, such as main:handle")
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if _ENV_NAME.fullmatch(key) is None or key.startswith("HEARTH_"):
                raise ValueError(f"{key[:80]!r} may not be the name of a variable (letters, digits and _; not HEARTH_...)")
            if "\0" in text or len(text) > 32_768:
                raise ValueError(f"the value of {key!r} holds a NUL or is longer than 32768 characters")
        return value

    @field_validator("placement")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            names.token("placement label", key)
            names.token("placement value", text)
        return value


#: Keys of the specification whose feature this release does not offer, with what to do instead.
NOT_AVAILABLE: dict[str, str] = {
    "secrets": "pass non-secret settings in env",
    "egress": "functions have no network",
    "triggers": "call the function over HTTP or hearth.v1.invoke",
    "on_success": "call the next function from the caller",
    "on_failure": "watch the job's state",
    "autotune": "set memory_mb and cpu by hand",
    "gpu": "run without a GPU",
    "run": "call the function instead of keeping it running",
    "image": "use a runtime",
}


class CodeRef(BaseModel):
    """Where a version's bundle lies."""

    model_config = ConfigDict(frozen=True)

    object: str
    kind: Literal["zip", "tar.gz", "file"]
    filename: str = ""
    """Name of the one file, when `kind` is `file`."""
    size: int
    sha256: str


class FunctionVersion(BaseModel):
    """One immutable version of a function. Key `<tenant>.<function>.<version>` of the registry."""

    model_config = ConfigDict(frozen=True)

    tenant: Name
    function: Name
    version: int = Field(ge=1)
    digest: str
    state: FunctionState = FunctionState.READY
    reason: str = ""
    spec: FunctionSpec
    code: CodeRef
    created_at: float
    created_by: str = ""
    backend: str = "container"

    @property
    def key(self) -> str:
        """What warm capacity is counted by."""
        return f"{self.tenant}.{self.function}.{self.version}"


class FunctionHead(BaseModel):
    """What a name stands for now. Key `<tenant>.<function>` of the registry."""

    model_config = ConfigDict(frozen=True)

    tenant: Name
    function: Name
    current: int = Field(ge=1)
    versions: tuple[int, ...] = ()
    deleted: bool = False
    updated_at: float

    @model_validator(mode="after")
    def _current_exists(self) -> Self:
        if self.versions and self.current not in self.versions:
            raise ValueError("the current version is not among the versions")
        return self


def memory_class_mb(memory_mb: int) -> int:
    """The class a sandbox is made in: the next power of two from 128 MiB."""
    size = 128
    while size < memory_mb:
        size *= 2
    return size


def registry_key(tenant: str, function: str, version: int | None = None) -> str:
    key = f"{names.name('tenant', tenant)}.{names.name('function', function)}"
    return key if version is None else f"{key}.{int(version)}"


Json = dict[str, Any]
