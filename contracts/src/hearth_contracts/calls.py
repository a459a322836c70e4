"""The messages of a call, from submission to its one final record. Metas only: bodies travel beside them, raw."""

from pydantic import BaseModel, ConfigDict, Field

from hearth_contracts.enums import Lane, OutcomeKind, Reason, Start, State

#: A body up to here travels inside its message, a larger one as an object: two bodies and a log fit the broker's 1 MiB.
INLINE_BYTES_MAX = 256 * 1024
#: The largest input or result at all.
BODY_BYTES_MAX = 1024 * 1024 * 1024
#: What a call may print; the rest is dropped and the record says `truncated`.
LOG_BYTES_MAX = 1024 * 1024
#: Output files of one call: each is a few hundred bytes of its record's meta, which is a header.
OUTPUTS_MAX = 64
#: Function calling function calling function: the sixteenth is the last.
DEPTH_MAX = 16


class Meta(BaseModel):
    """A message. Unknown fields are ignored, so that a newer sender is understood."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Body(Meta):
    """One body: inside the message when `object` is empty, else stored as that object."""

    content_type: str = "application/json"
    size: int = 0
    object: str = ""


class Output(Meta):
    """A file that a function wrote while it ran."""

    name: str
    size: int
    sha256: str
    content_type: str = ""
    """As the function said, if it did."""
    object: str
    """Always an object of its own, however small."""


class HttpRequest(Meta):
    """How the caller spoke, when the function is called as a plain HTTP endpoint."""

    method: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Call(Meta):
    """A submitted call (`call.v1`), on CALLS, JOBS and inside everything that carries a whole job. Body: the input."""

    job: str
    tenant: str
    function: str
    version: int
    lane: Lane
    gateway: str = ""
    """The gateway that waits for the reply; empty when nobody does."""
    submitted_at: float
    input: Body = Body()
    http: HttpRequest | None = None
    attempt: int = 1
    placement: int = 0
    """How often this attempt was placed before."""
    losses: int = 0
    """How many executors died with it after its last attempt had begun."""
    depth: int = 0
    parent: str = ""
    """The job that called this one."""
    replay_of: str = ""
    caller: str = ""
    """Prefix of the key that asked."""


class Run(Meta):
    """A call placed on an executor (`run.v1`). Body: the input."""

    call: Call
    executor: str
    placement: int
    epoch: int
    is_last: bool
    """Whether a failure of this attempt is the final one."""
    placed_at: float
    reason: str
    """Why this executor: `assigned-warm`, `generic-warm`, `free`, ..."""


class Failure(Meta):
    """What went wrong, for people."""

    type: str = ""
    message: str = ""
    traceback: str = ""


class Usage(Meta):
    """What a call cost."""

    wall_ms: float = 0
    cpu_ms: float = 0
    memory_peak_mb: float = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Timings(Meta):
    """When things happened: Unix seconds, and milliseconds per phase of a cold start."""

    submitted_at: float = 0
    placed_at: float = 0
    accepted_at: float = 0
    started_at: float = 0
    finished_at: float = 0
    cold_ms: dict[str, float] = Field(default_factory=dict)


class Ending(Meta):
    """How an attempt ended; the same words in reply, record and outcome."""

    state: State
    reason: Reason | None = None
    failure: Failure | None = None
    result: Body = Body()
    http_status: int | None = None
    http_headers: tuple[tuple[str, str], ...] = ()
    outputs: tuple[Output, ...] = ()
    """In the order in which they were opened; none of a failed attempt."""
    start: Start = Start.WARM
    usage: Usage = Usage()
    timings: Timings = Timings()
    executor: str = ""
    attempt: int = 1
    placement: int = 0


class Reply(Meta):
    """The sync answer (`reply.v1`), ahead of its record. Body: the result."""

    job: str
    ending: Ending


class Record(Meta):
    """The one final of a job (`record.v1`). Body: input, result and log, one after the other, as far as they are inline."""

    job: str
    tenant: str
    function: str
    version: int
    lane: Lane
    ending: Ending
    input: Body = Body()
    log: Body = Body(content_type="text/plain")
    log_truncated: bool = False
    http: HttpRequest | None = None
    trace_id: str = ""
    persist: bool = True
    depth: int = 0
    parent: str = ""
    replay_of: str = ""
    recorded_at: float = 0
    stated: bool = False
    """Whether states of it were published: they leave when it is recorded. False of a call that was too quick for any."""

    def parts(self, body: bytes) -> tuple[bytes, bytes, bytes]:
        """Input, result and log as far as they are inline, cut out of the message's body."""
        inline = [0 if part.object else part.size for part in (self.input, self.ending.result, self.log)]
        first, second = inline[0], inline[0] + inline[1]
        return body[:first], body[first:second], body[second : second + inline[2]]


class StateChange(Meta):
    """PENDING or PROCESSING (`state.v1`). Readers order by (attempt, phase) and ignore what follows a final."""

    job: str
    tenant: str
    state: State
    attempt: int = 1
    phase: int = 0
    """0 pending, 1 placed, 2 running; higher within the same attempt is later."""
    at: float
    executor: str = ""
    note: str = ""
    sequence: int = 0
    """With an async job's PENDING: its place in JOBS, so that a cancel finds the input while it waits there."""
    version: int = 0
    """With PENDING: the version that was called."""


class Outcome(Meta):
    """A whole job on its way back to the scheduler (`outcome.v1`). Body: the input."""

    run: Run
    kind: OutcomeKind
    ending: Ending | None = None
    note: str = ""


class LogChunk(Meta):
    """What a function printed (`log.v1`). Body: the bytes as they came."""

    job: str
    attempt: int = 1
    stream: str = "stdout"
    number: int = 0
    at: float = 0


class Dead(Meta):
    """A job that used up its attempts (`dead.v1`). Body: the input when inline."""

    call: Call
    ending: Ending
    attempts: int
    at: float


class Depths(Meta):
    """Waiting calls per `tenant.function` (`depths.v1`), and the longest wait."""

    scheduler: str
    epoch: int
    waiting: dict[str, int] = Field(default_factory=dict)
    at: float = 0


class Moved(Meta):
    """A sync call is about to be placed anew as this dispatch (`moved.v1`, request). From here on the gateway takes no reply
    of an earlier dispatch."""

    job: str
    attempt: int
    placement: int


class MovedAnswer(Meta):
    """The gateway's word (`moved-answer.v1`). `answered`: the caller has been told already, so record what REPLIES holds
    instead of running again. `held`: the caller still waits."""

    held: bool
    answered: bool


class ArchiveQuery(Meta):
    """Asks for one record (`job`) or a page of history, newest first (`archive.v1`, request).

    With `output`, the object of one of the job's output files, that file is put back on the broker first if it has left: a
    record's other bodies are always put back, its outputs may be many and large.

    The answer to a single question is a `record.v1` with its body, or a header `Hearth-Missing: 1`; to a page it is a JSON
    object `{"jobs": [...], "next": cursor}`. Missing is proof: every store was asked, and none has it. When a store that could
    have it cannot be read, the answer is a header `Hearth-Error: E_STORE_UNREADABLE` and a JSON object `{"error": why}`: nobody
    can say now, ask again later. A question that cannot be understood is answered `Hearth-Error: E_BAD_QUERY`.
    """

    tenant: str
    job: str = ""
    output: str = ""
    function: str = ""
    state: str = ""
    since: float = 0
    until: float = 0
    limit: int = 50
    cursor: str = ""
