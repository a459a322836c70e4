"""A call whose dispatch id the broker knows already: a stream's memory of ids outlives their messages, so it may be anywhere,
or nowhere (DELIVERY rule 4)."""

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Call
from hearth_contracts.enums import Lane
from hearth_kit.bus import Bus, Stored


async def is_somewhere(bus: Bus, call: Call, sequence: int) -> bool:
    """Whether it waits where it was published (`sequence`), is placed, travels back, or has ended. Raises a `BusError`."""
    sync = call.lane is Lane.SYNC
    waiting = await bus.get_at(streams.CALLS.name if sync else streams.JOBS.name, sequence)
    if waiting is not None and waiting.message.meta(Call).job == call.job:
        return True
    # It may move from one to the next between two looks: the runs are looked at twice.
    return (
        await _run(bus, call, sync=sync) is not None
        or await bus.get_last(
            streams.OUTCOMES_SYNC.name if sync else streams.OUTCOMES.name,
            subjects.outcome(call.tenant, call.function, call.job, sync=sync),
        )
        is not None
        or await bus.get_last(streams.RECORDS.name, subjects.record(call.tenant, call.job)) is not None
        or await _run(bus, call, sync=sync) is not None
    )


async def _run(bus: Bus, call: Call, *, sync: bool) -> Stored | None:
    return await bus.get_next(streams.RUNS_SYNC.name if sync else streams.RUNS.name, subjects.run_anywhere(call.job, sync=sync))
