"""Jobs that have not ended, for the list of jobs: every async job, and a sync call once it has lasted for a second (by then
it is made visible to all gateways)."""

from collections.abc import Sequence
from typing import Any, Final

from hearth_contracts import names, streams, subjects
from hearth_gateway.jobs.lookup import Found, Jobs

#: Of the states on the broker so many are read: a queue of a million jobs must not make a list cost seconds.
STATES_READ_MAX: Final = 4000


async def newest(jobs: Jobs, tenant: str, *, function: str, state: str, since: float, until: float, limit: int) -> list[Any]:
    """Rows like the archive's, newest first, at most `limit`."""
    wanted = subjects.states_of_function(tenant, function) if function else subjects.states_of(tenant)
    heard = await jobs.bus.get_last_each(streams.STATES.name, [wanted], messages_max=STATES_READ_MAX)
    found: list[dict[str, Any]] = []
    for job in _in_time([stored.subject.rpartition(".")[2] for stored in heard], since, until):
        live = await jobs.live(tenant, job)
        if live is None or live.record is not None:
            continue  # it has ended since: the archive tells of it
        row = _row(live)
        if state in ("", row["state"]):
            found.append(row)
        if len(found) == limit:
            break
    return found


def _in_time(jobs: Sequence[str], since: float, until: float) -> list[str]:
    """Newest first; of those made in the same millisecond, whichever was heard of last."""
    made = {job: names.made_at(job) for job in jobs}
    chosen = [job for job, at in reversed(made.items()) if at >= since and (not until or at <= until)]
    return sorted(chosen, key=lambda job: made[job], reverse=True)


def _row(found: Found) -> dict[str, Any]:
    first, last = (found.states[0], found.states[-1]) if found.states else (None, None)
    sync = found.held is not None or (first is not None and not first.sequence)
    return {
        "job": found.job, "tenant": found.tenant, "function": names.function_of(found.job),
        "version": next((state.version for state in found.states if state.version), None),
        "lane": "sync" if sync else "async", "state": last.state.value if last else "PENDING", "reason": "", "start": "",
        "attempt": last.attempt if last else 1, "submitted_at": first.at if first else names.made_at(found.job),
        "finished_at": None, "wall_ms": None,
    }  # fmt: skip
