"""What the persister needs of a store: four verbs, the same for a folder, S3 and Google Cloud Storage."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Stored:
    """The key is new and its bytes are durable."""

    size: int


@dataclass(frozen=True, slots=True)
class Exists:
    """The key was there before. `equal`: with the very same bytes, so that the work is done all the same."""

    equal: bool


class ObjectStore(Protocol):
    """A place for objects that are written once and never altered. Every method raises `StoreError`, nothing else of its own."""

    @property
    def name(self) -> str: ...

    async def check(self) -> None:
        """Prove that a write would succeed now: called before records are asked for."""
        ...

    async def put_new(self, key: str, content: bytes | AsyncIterator[bytes], *, sha256: str) -> Stored | Exists:
        """Write `content` under `key` unless something is there. Atomic and durable when it returns.

        `sha256` is what the content must hash to (`ObjectCorrupt` else, and nothing is written).
        """
        ...

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; a negative `start` counts from its end. Raises `KeyMissing`."""
        ...

    def read(self, key: str) -> AsyncIterator[bytes]:
        """A whole object, in chunks. Raises `KeyMissing`."""
        ...

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        """Keys below `prefix`, in order, those greater than `after` only."""
        ...

    async def delete(self, key: str) -> None:
        """Remove it; nothing happens when it is not there."""
        ...
