"""Making what the bus needs. File streams are made once, on an empty store; memory streams at each broker start."""

from typing import Final

from hearth_contracts import streams
from hearth_contracts.streams import Stream
from hearth_kit.bus import Bus, ConsumerSpec

#: A scheduler that dies with work in its hands gives it to the next one after this.
SCHEDULER_ACK_WAIT_S: Final = 5.0
#: What a stream's promises rest on; sizes are the operator's.
_CHECKED: Final = ("subjects", "retention", "storage", "discard", "max_msgs_per_subject", "max_age")


async def provision(bus: Bus, *, replicas: int = 1, only: tuple[Stream, ...] = streams.STREAMS) -> None:
    """Make the streams. Run by whoever owns the broker (`up`, an operator), never by a service."""
    for stream in only:
        await bus.ensure_stream(stream, replicas=replicas)


async def remake_memory(bus: Bus, *, replicas: int = 1) -> list[str]:
    """Make again what died with the broker process: the active scheduler's duty. Returns what was missing."""
    missing = [stream for stream in streams.MEMORY_STREAMS if await bus.stream_info(stream.name) is None]
    await provision(bus, replicas=replicas, only=tuple(missing))
    return [stream.name for stream in missing]


async def problems(bus: Bus, names: tuple[str, ...]) -> dict[str, str]:
    """File streams that are missing or altered, each with its fix.

    They are never silently made again: what they held is gone, and somebody must know.
    """
    wrong: dict[str, str] = {}
    for name in names:
        fix = f"run ./hearth doctor --fix --remake {name}"
        info = await bus.stream_info(name)
        if info is None:
            wrong[name] = f"stream {name} is missing; what it held is lost: restore the broker's store, or {fix}"
            continue
        wanted = next(stream for stream in streams.STREAMS if stream.name == name).config()
        altered = [key for key in _CHECKED if info.config.get(key) != wanted[key]]
        if altered:
            wrong[name] = f"stream {name} was altered ({', '.join(altered)}): {fix}"
    return wrong


def scheduler_consumers() -> tuple[ConsumerSpec, ...]:
    return tuple(
        ConsumerSpec(name, streams.SCHEDULER_CONSUMER, ack_wait_s=SCHEDULER_ACK_WAIT_S)
        for name in ("CALLS", "OUTCOMES", "OUTCOMES_SYNC")
    )
