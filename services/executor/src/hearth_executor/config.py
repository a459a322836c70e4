"""Settings of the executor, read once."""

import os
from typing import Final, Literal, Self

from pydantic import Field, field_validator

from hearth_contracts import names
from hearth_contracts.calls import BODY_BYTES_MAX
from hearth_executor.failpoints import NAMES
from hearth_kit.settings import ServiceSettings

#: Slots where nothing is said: calls often wait rather than compute, so more than one per core.
SLOTS_PER_CPU: Final = 2
SLOTS_MIN: Final = 8
#: Booted sandboxes kept ready where nothing is said: 10 MiB each.
GENERIC_MAX: Final = 8


class Settings(ServiceSettings):
    boot: str = Field(
        default_factory=names.new_boot,
        pattern=r"^[0-9a-f]{8}$",
        description="This life of the executor, 8 hex digits: given by whoever starts it, together with its credentials.",
    )
    slots: int = Field(0, ge=0, le=4096, description="Calls that run at once; 0: twice the processors, at least 8.")
    labels: str = Field("", description="What functions may ask for in `placement`, such as zone=edge,disk=fast.")
    heartbeat_s: float = Field(
        10,
        gt=0,
        le=3600,
        description="Seconds between signs that a run is still in hand; below a third of the broker's ack wait.",
    )
    silence_s_max: float = Field(
        8,
        gt=0,
        description="Seconds without a sign of the broker after which this executor asks whether it still counts, before it "
        "speaks; below the scheduler's own limit of 10.",
    )
    result_bytes_max: int = Field(BODY_BYTES_MAX, ge=1024, description="Bytes of the largest result.")
    output_bytes_max: int = Field(
        BODY_BYTES_MAX,
        ge=0,
        description="Bytes of all output files of one call: as large as the largest body, and a twentieth of the day of bodies "
        "that the broker has room for.",
    )
    failpoint: str = Field("", description="For tests: named steps at which this process ends as a crash would.")

    link: Literal["auto", "fast", "stdio"] = Field(
        "auto",
        description="How the executor reaches into a container: the fast link where it is permitted, or the attached streams.",
    )
    memory_mb: int = Field(0, ge=0, description="MiB that sandboxes may take in all; 0: three quarters of the machine's.")
    generic: str = Field(
        "",
        description="Booted sandboxes kept ready, such as python/128=4,python/256=1; empty: one of python/128 per slot, at "
        "most 8.",
    )
    sandbox_runtime: str = Field("", description="OCI runtime of the sandboxes, such as runsc; empty: the engine's own.")
    images: str = Field(
        "",
        description="Runtime images that differ from the shipped names, such as python=registry.example/hearth-python:1.",
    )

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: str) -> str:
        for key, text in _pairs(value).items():
            names.token("label", key)
            names.token("label value", text)
        return value

    @field_validator("generic")
    @classmethod
    def _generic(cls, value: str) -> str:
        for shelf, count in _pairs(value).items():
            runtime, slash, class_mb = shelf.partition("/")
            if not (runtime and slash and class_mb.isdigit() and count.isdigit()):
                raise ValueError(f"{shelf}={count} is not written as runtime/MiB=count")
        return value

    @field_validator("images")
    @classmethod
    def _images(cls, value: str) -> str:
        _pairs(value)
        return value

    @field_validator("failpoint")
    @classmethod
    def _failpoint(cls, value: str) -> str:
        for name in filter(None, value.split(",")):
            if name not in NAMES:
                raise ValueError(f"there is no failpoint {name!r}; there are {', '.join(sorted(NAMES))}")
        return value

    @property
    def executor_id(self) -> str:
        return names.executor(f"{self.instance}-{self.boot}")

    @property
    def slot_count(self) -> int:
        return self.slots or max(SLOTS_MIN, SLOTS_PER_CPU * len(os.sched_getaffinity(0)))

    @property
    def generic_map(self) -> dict[str, int]:
        if not self.generic:
            return {"python/128": min(self.slot_count, GENERIC_MAX)}
        return {shelf: int(count) for shelf, count in _pairs(self.generic).items()}

    @property
    def image_map(self) -> dict[str, str]:
        return _pairs(self.images)

    @property
    def label_map(self) -> dict[str, str]:
        return _pairs(self.labels)

    def as_executor(self) -> Self:
        """The same, under the id by which broker and scheduler know this life of the executor."""
        return self.model_copy(update={"instance": self.executor_id})


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not written as name=value")
        pairs[key.strip()] = value.strip()
    return pairs
