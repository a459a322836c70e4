"""Which containers on the engine nobody owns any more."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A container of our platform, as its labels tell."""

    id: str
    name: str
    executor: str
    boot: str


def orphans(
    found: Iterable[Found], *, executor: str, boot: str, known: Collection[str], dead: Collection[tuple[str, str]]
) -> tuple[Found, ...]:
    """Those of an earlier life of ours; those of this life that we do not know of (a creation that was given up while
    the engine hung); those of executors that we were told are dead, as (name, boot). A living peer's are never touched.
    `known` are names, which are registered before the engine is asked to create."""

    def orphaned(container: Found) -> bool:
        if container.executor != executor:
            return (container.executor, container.boot) in dead
        return container.boot != boot or container.name not in known

    return tuple(container for container in found if orphaned(container))
