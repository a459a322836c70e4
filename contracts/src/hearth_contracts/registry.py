"""Each contract once: who says it, where, who listens. Schemas, permissions and the documents derive from here."""

from dataclasses import dataclass
from typing import Final

from hearth_contracts import ai, calls, fleet, functions, keys, objects, streams, subjects
from hearth_contracts.streams import Stream

GATEWAY: Final = "gateway"
SCHEDULER: Final = "scheduler"
EXECUTOR: Final = "executor"
AI_PROXY: Final = "ai-proxy"
PERSISTER: Final = "persister"
SERVICES: Final = (GATEWAY, SCHEDULER, EXECUTOR, AI_PROXY, PERSISTER)


@dataclass(frozen=True, slots=True)
class Contract:
    """One message. `{instance}` in a subject is the process's own name; `*` and `>` are the broker's wildcards.

    `producers` publish on `subject` (with `{instance}` filled in); `listeners` subscribe to it live; `readers` get it from
    the stream by direct get; consumers of streams are in `CONSUMERS`.
    """

    name: str
    version: int
    model: type[calls.Meta]
    subject: str
    stream: Stream | None
    producers: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    body: str = "none"
    own_subject: str = ""
    """What a producer may publish on, where that is narrower than `subject`."""
    own_listen: str = ""
    """What a listener may subscribe to, where that is narrower than `subject`."""
    answer: type[calls.Meta] | None = None
    """What a request is answered with."""

    @property
    def label(self) -> str:
        return f"{self.name}.v{self.version}"


CALL: Final = Contract("call", 1, calls.Call, subjects.CALLS_ALL, streams.CALLS, (GATEWAY,), readers=(GATEWAY,),
    body="input")  # fmt: skip
JOB: Final = Contract("job", 1, calls.Call, subjects.JOBS_ALL, streams.JOBS, (GATEWAY, SCHEDULER), readers=(GATEWAY,),
    body="input")  # fmt: skip
RUN: Final = Contract("run", 1, calls.Run, subjects.RUNS_ALL, streams.RUNS, (SCHEDULER,),
    readers=(SCHEDULER, GATEWAY), body="input")  # fmt: skip
RUN_SYNC: Final = Contract("run-sync", 1, calls.Run, subjects.RUNS_SYNC_ALL, streams.RUNS_SYNC, (SCHEDULER,),
    readers=(SCHEDULER, GATEWAY), body="input")  # fmt: skip
OUTCOME: Final = Contract("outcome", 1, calls.Outcome, subjects.OUTCOMES_ALL, streams.OUTCOMES,
    (EXECUTOR, SCHEDULER), readers=(GATEWAY, SCHEDULER), body="input")  # fmt: skip
OUTCOME_SYNC: Final = Contract("outcome-sync", 1, calls.Outcome, subjects.OUTCOMES_SYNC_ALL, streams.OUTCOMES_SYNC,
    (EXECUTOR, SCHEDULER), readers=(GATEWAY, SCHEDULER), body="input")  # fmt: skip
RECORD: Final = Contract("record", 1, calls.Record, subjects.RECORDS_ALL, streams.RECORDS, (EXECUTOR, SCHEDULER, GATEWAY),
    listeners=(GATEWAY, SCHEDULER), readers=(GATEWAY, SCHEDULER, EXECUTOR, PERSISTER), body="input, result, log")  # fmt: skip
REPLY: Final = Contract("reply", 1, calls.Reply, subjects.REPLIES_ALL, streams.REPLIES, (EXECUTOR, SCHEDULER),
    listeners=(GATEWAY,), readers=(GATEWAY, SCHEDULER), body="result",
    own_listen=f"{subjects.PREFIX}.replies.{{instance}}.*")  # fmt: skip
STATE: Final = Contract("state", 1, calls.StateChange, subjects.STATES_ALL, streams.STATES, (GATEWAY, SCHEDULER, EXECUTOR),
    listeners=(GATEWAY,), readers=(GATEWAY, SCHEDULER))  # fmt: skip
LOG: Final = Contract("log", 1, calls.LogChunk, subjects.LOGS_ALL, streams.LOGS, (EXECUTOR,), listeners=(GATEWAY,),
    readers=(GATEWAY,), body="what the function printed")  # fmt: skip
CAPACITY: Final = Contract("capacity", 1, fleet.Capacity, subjects.CAPACITY_ALL, streams.CAPACITY, (EXECUTOR,),
    listeners=(GATEWAY, SCHEDULER), readers=(GATEWAY, SCHEDULER),
    own_subject=f"{subjects.PREFIX}.capacity.{{instance}}")  # fmt: skip
AI_REQUEST: Final = Contract("ai-request", 1, ai.AiRequest, subjects.AI_REQUESTS_ALL, streams.AI, (GATEWAY, EXECUTOR),
    body="the caller's JSON")  # fmt: skip
AI_TOKENS: Final = Contract("ai-tokens", 1, ai.AiTokens, subjects.AI_TOKENS_ALL, streams.AI_TOKENS, (AI_PROXY,),
    listeners=(GATEWAY, EXECUTOR), body="a piece of the answer",
    own_listen=f"{subjects.PREFIX}.ai.tokens.{{instance}}.*")  # fmt: skip
DEAD: Final = Contract("dead", 1, calls.Dead, subjects.DEAD_ALL, streams.DEAD, (SCHEDULER, EXECUTOR), readers=(GATEWAY,),
    body="input")  # fmt: skip
SPANS: Final = Contract("spans", 1, keys.SpanBatch, subjects.TRACES_ALL, streams.TRACES, SERVICES, readers=(GATEWAY,),
    body="a JSON list of spans")  # fmt: skip
EVENT: Final = Contract("event", 1, calls.Meta, subjects.EVENTS_ALL, streams.EVENTS, (GATEWAY, EXECUTOR),
    listeners=(GATEWAY,), body="the event")  # fmt: skip
OBJECT_BODY: Final = Contract("object", 1, objects.ObjectMeta, subjects.objects_in("bodies"), streams.OBJECTS_BODIES,
    (GATEWAY, EXECUTOR, PERSISTER), readers=(GATEWAY, EXECUTOR, PERSISTER), body="a chunk")  # fmt: skip
OBJECT_CODE: Final = Contract("code-object", 1, objects.ObjectMeta, subjects.objects_in("code"), streams.OBJECTS_CODE,
    (GATEWAY,), readers=(GATEWAY, EXECUTOR, PERSISTER), body="a chunk")  # fmt: skip
CONTROL: Final = Contract("control", 1, fleet.Control, subjects.CONTROL_ALL, None, (GATEWAY, SCHEDULER),
    listeners=(EXECUTOR,), own_listen=f"{subjects.PREFIX}.control.{{instance}}", answer=fleet.ControlDone)  # fmt: skip
DEPTHS: Final = Contract("depths", 1, calls.Depths, subjects.DEPTHS_ALL, None, (SCHEDULER,), listeners=(GATEWAY,),
    own_subject=f"{subjects.PREFIX}.depths.{{instance}}")  # fmt: skip
PRESENCE: Final = Contract("presence", 1, fleet.Presence, subjects.PRESENCE_ALL, None, SERVICES, listeners=(GATEWAY,),
    own_subject=f"{subjects.PREFIX}.presence.{{service}}.{{instance}}")  # fmt: skip
INVOKE: Final = Contract("invoke", 1, calls.Meta, subjects.INVOKE_ALL, None, (), listeners=(GATEWAY,), body="input")
CHUNK: Final = Contract("chunk", 1, calls.LogChunk, subjects.CHUNKS_ALL, None, (EXECUTOR,), listeners=(GATEWAY,),
    body="a streamed piece of a result", own_listen=f"{subjects.PREFIX}.chunks.{{instance}}.*")  # fmt: skip

MOVED: Final = Contract("moved", 1, calls.Moved, subjects.MOVED_ALL, None, (SCHEDULER, GATEWAY), listeners=(GATEWAY,),
    own_listen=f"{subjects.PREFIX}.moved.{{instance}}", answer=calls.MovedAnswer)  # fmt: skip
ARCHIVE: Final = Contract("archive", 1, calls.ArchiveQuery, subjects.ARCHIVE, None, (GATEWAY, SCHEDULER), listeners=(PERSISTER,),
    answer=calls.Record)  # fmt: skip

CONTRACTS: Final = (CALL, JOB, RUN, RUN_SYNC, OUTCOME, OUTCOME_SYNC, RECORD, REPLY, STATE, LOG, CAPACITY, AI_REQUEST,
    AI_TOKENS, DEAD, SPANS, EVENT, OBJECT_BODY, OBJECT_CODE, CONTROL, DEPTHS, PRESENCE, INVOKE, CHUNK,
    MOVED, ARCHIVE)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable consumer a service pulls from. `{instance}` in the name is the process's own."""

    service: str
    stream: Stream
    name: str


CONSUMERS: Final = (
    Consumer(SCHEDULER, streams.CALLS, "scheduler"),
    Consumer(SCHEDULER, streams.JOBS, "*"),
    Consumer(SCHEDULER, streams.OUTCOMES, "scheduler"),
    Consumer(SCHEDULER, streams.OUTCOMES_SYNC, "scheduler"),
    Consumer(EXECUTOR, streams.RUNS, "x_{instance}"),
    Consumer(EXECUTOR, streams.RUNS_SYNC, "x_{instance}"),
    Consumer(PERSISTER, streams.RECORDS, "*"),
    Consumer(AI_PROXY, streams.AI, "ai-proxy"),
)


@dataclass(frozen=True, slots=True)
class BucketUse:
    """Who reads and who writes a bucket."""

    stream: Stream
    readers: tuple[str, ...]
    writers: tuple[str, ...]

    @property
    def bucket(self) -> str:
        return self.stream.name.removeprefix("KV_")


BUCKETS: Final = (
    BucketUse(streams.FUNCTIONS, (GATEWAY, SCHEDULER, EXECUTOR), (GATEWAY,)),
    BucketUse(streams.KEYS, (GATEWAY,), (GATEWAY,)),
    BucketUse(streams.LEASES, (SCHEDULER, GATEWAY), (SCHEDULER,)),
    BucketUse(streams.IDEMPOTENCY, (GATEWAY,), (GATEWAY,)),
)

#: Models that are stored, not sent: their schemas are kept stable the same way.
STORED: Final = {
    "function-version": functions.FunctionVersion,
    "function-head": functions.FunctionHead,
    "function-spec": functions.FunctionSpec,
    "api-key": keys.ApiKey,
    "idempotency": keys.Idempotency,
    "lease": keys.Lease,
}
