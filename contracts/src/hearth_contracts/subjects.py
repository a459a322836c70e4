"""Every subject, as a pair: what one publishes, and what one subscribes to. Tokens are validated when a subject is built.

The functions on the call path take tokens that were validated when the ids were made; they are checked again by the
one compiled pattern in `_subject`, because a subject is the one place where a bad id would become somebody else's.
"""

import re
from typing import Final

from hearth_contracts import names
from hearth_contracts.errors import InvalidName

PREFIX: Final = "hearth.v1"
_SAFE: Final = re.compile(r"[A-Za-z0-9_=-]{1,200}(?:\.[A-Za-z0-9_=-]{1,200})*")


def _subject(*tokens: str) -> str:
    tail = ".".join(tokens)
    if _SAFE.fullmatch(tail) is None or tail.count(".") != len(tokens) - 1:
        raise InvalidName("subject", tail, "a token holds characters that may not stand in a subject")
    return f"{PREFIX}.{tail}"


def call(tenant: str, function: str) -> str:
    return _subject("calls", tenant, function)


CALLS_ALL: Final = f"{PREFIX}.calls.>"


def job(tenant: str, function: str) -> str:
    return _subject("jobs", tenant, function)


JOBS_ALL: Final = f"{PREFIX}.jobs.>"


def run(executor: str, job_id: str, *, sync: bool) -> str:
    return _subject("runs_sync" if sync else "runs", executor, job_id)


def runs_of(executor: str, *, sync: bool) -> str:
    return f"{_subject('runs_sync' if sync else 'runs', executor)}.>"


def run_anywhere(job_id: str, *, sync: bool) -> str:
    """A job's placement on whatever executor: for looking it up."""
    lane = "runs_sync" if sync else "runs"
    return f"{PREFIX}.{lane}.*.{names.job(job_id)}"


RUNS_ALL: Final = f"{PREFIX}.runs.>"
RUNS_SYNC_ALL: Final = f"{PREFIX}.runs_sync.>"


def outcome(tenant: str, function: str, job_id: str, *, sync: bool) -> str:
    return _subject("outcomes_sync" if sync else "outcomes", tenant, function, job_id)


OUTCOMES_ALL: Final = f"{PREFIX}.outcomes.>"
OUTCOMES_SYNC_ALL: Final = f"{PREFIX}.outcomes_sync.>"


def record(tenant: str, job_id: str) -> str:
    return _subject("records", tenant, names.function_of(job_id), job_id)


RECORDS_ALL: Final = f"{PREFIX}.records.>"


def reply(gateway: str, job_id: str) -> str:
    return _subject("replies", gateway, job_id)


def replies_of(gateway: str) -> str:
    return f"{_subject('replies', gateway)}.*"


REPLIES_ALL: Final = f"{PREFIX}.replies.>"


def state(tenant: str, job_id: str) -> str:
    return _subject("states", tenant, names.function_of(job_id), job_id)


def states_of(tenant: str) -> str:
    return f"{_subject('states', tenant)}.>"


def states_of_function(tenant: str, function: str) -> str:
    return f"{_subject('states', tenant, function)}.*"


STATES_ALL: Final = f"{PREFIX}.states.>"


def event(tenant: str, path: str) -> str:
    return f"{_subject('events', tenant)}.{names.event_path(path)}"


def events_matching(tenant: str, pattern: str) -> str:
    return f"{_subject('events', tenant)}.{names.event_path(pattern, wildcards=True)}"


EVENTS_ALL: Final = f"{PREFIX}.events.>"


def log(tenant: str, job_id: str) -> str:
    return _subject("logs", tenant, names.function_of(job_id), job_id)


LOGS_ALL: Final = f"{PREFIX}.logs.>"


def capacity(executor: str) -> str:
    return _subject("capacity", executor)


CAPACITY_ALL: Final = f"{PREFIX}.capacity.*"


def ai_request(model: str) -> str:
    return _subject("ai", "requests", names.escape(model))


AI_REQUESTS_ALL: Final = f"{PREFIX}.ai.requests.>"


def ai_tokens(asker: str, request: str) -> str:
    return _subject("ai", "tokens", asker, request)


def ai_tokens_of(asker: str) -> str:
    return f"{_subject('ai', 'tokens', asker)}.*"


AI_TOKENS_ALL: Final = f"{PREFIX}.ai.tokens.>"


def dead(tenant: str, job_id: str) -> str:
    return _subject("dead", tenant, names.function_of(job_id), job_id)


DEAD_ALL: Final = f"{PREFIX}.dead.>"


def trace(trace_id: str) -> str:
    return _subject("traces", trace_id)


TRACES_ALL: Final = f"{PREFIX}.traces.*"


def object_chunk(area: str, object_id: str, number: int) -> str:
    return _subject("objects", area, object_id, str(number))


def object_meta(area: str, object_id: str) -> str:
    return _subject("objects", area, object_id, "meta")


def object_all(area: str, object_id: str) -> str:
    return f"{_subject('objects', area, object_id)}.>"


def objects_in(area: str) -> str:
    return f"{_subject('objects', area)}.>"


def control(executor: str) -> str:
    return _subject("control", executor)


CONTROL_ALL: Final = f"{PREFIX}.control.*"


def chunk(gateway: str, job_id: str) -> str:
    return _subject("chunks", gateway, job_id)


def chunks_of(gateway: str) -> str:
    return f"{_subject('chunks', gateway)}.*"


CHUNKS_ALL: Final = f"{PREFIX}.chunks.>"


def invoke(tenant: str, function: str) -> str:
    return _subject("invoke", tenant, function)


INVOKE_ALL: Final = f"{PREFIX}.invoke.*.*"


def depths(scheduler: str) -> str:
    """How many calls wait, per function, told to gateways each 100 ms."""
    return _subject("depths", scheduler)


DEPTHS_ALL: Final = f"{PREFIX}.depths.*"


def presence(service: str, instance: str) -> str:
    """Each process says that it lives, each second, so that the fleet can be shown whole."""
    return _subject("presence", service, instance)


PRESENCE_ALL: Final = f"{PREFIX}.presence.>"


def moved(gateway: str) -> str:
    """Asks a gateway whether it has answered a call, before that call is placed anew."""
    return _subject("moved", gateway)


MOVED_ALL: Final = f"{PREFIX}.moved.*"


ARCHIVE: Final = f"{PREFIX}.archive"
"""Asks whatever holds the stores for records that have left the broker."""
