"""Every stream and bucket, as data. Whoever makes them makes exactly these; whoever starts checks against these."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from hearth_contracts import subjects

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
SECOND_NS: Final = 1_000_000_000
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream. `storage` memory streams die with the broker and are made again; file streams never silently."""

    name: str
    subjects: tuple[str, ...]
    storage: Literal["file", "memory"]
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["new", "old"] = "old"
    max_age_s: float = 0
    max_bytes: int = -1
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    discard_new_per_subject: bool = False
    duplicate_window_s: float = 120
    allow_ttl: bool = False
    allow_rollup: bool = False
    deny_delete: bool = False
    compressed: bool = False
    why: str = field(default="", compare=False)

    def config(self, *, replicas: int = 1) -> dict[str, Any]:
        """The broker's own JSON for this stream: exact, since it refuses unknown fields."""
        config: dict[str, Any] = {
            "name": self.name,
            "description": self.why,
            "subjects": list(self.subjects),
            "storage": self.storage,
            "retention": self.retention,
            "discard": self.discard,
            "max_age": int(self.max_age_s * SECOND_NS),
            "max_bytes": self.max_bytes,
            "max_msgs": self.max_msgs,
            "max_msgs_per_subject": self.max_msgs_per_subject,
            "max_consumers": -1,
            "max_msg_size": -1,
            "num_replicas": replicas,
            "duplicate_window": int(self.duplicate_window_s * SECOND_NS),
            "allow_direct": True,
            "compression": "s2" if self.compressed else "none",
        }
        if self.max_age_s and self.duplicate_window_s > self.max_age_s:
            config["duplicate_window"] = config["max_age"]
        for flag, on in (
            ("discard_new_per_subject", self.discard_new_per_subject),
            ("allow_msg_ttl", self.allow_ttl),
            ("allow_rollup_hdrs", self.allow_rollup),
            ("deny_delete", self.deny_delete),
        ):
            if on:
                config[flag] = True
        return config


#: Calls of one function that may wait in the broker at most; `queue.depth` lowers it per function, at the gateway.
QUEUE_DEPTH_MAX: Final = 100_000
#: After this the records decide, never deduplication (DELIVERY rule 4).
DUPLICATES_S: Final = 600

CALLS: Final = Stream("CALLS", (subjects.CALLS_ALL,), "memory", "workqueue", "new", max_bytes=512 * MIB,
    max_msgs_per_subject=QUEUE_DEPTH_MAX, discard_new_per_subject=True, duplicate_window_s=120,
    why="sync calls on their way to a placement")  # fmt: skip
JOBS: Final = Stream("JOBS", (subjects.JOBS_ALL,), "file", "workqueue", "new", max_bytes=20 * GIB,
    max_msgs_per_subject=QUEUE_DEPTH_MAX, discard_new_per_subject=True, duplicate_window_s=DUPLICATES_S,
    why="async jobs")  # fmt: skip
RUNS: Final = Stream("RUNS", (subjects.RUNS_ALL,), "file", "workqueue", "new", max_bytes=4 * GIB,
    duplicate_window_s=DUPLICATES_S, why="placements of async jobs")  # fmt: skip
RUNS_SYNC: Final = Stream("RUNS_SYNC", (subjects.RUNS_SYNC_ALL,), "memory", "workqueue", "new", max_bytes=512 * MIB,
    why="placements of sync calls")  # fmt: skip
OUTCOMES: Final = Stream("OUTCOMES", (subjects.OUTCOMES_ALL,), "file", "workqueue", "new", max_bytes=4 * GIB,
    duplicate_window_s=DUPLICATES_S, why="async jobs on their way back: hand-backs, and failed attempts that wait for their retry")  # fmt: skip
OUTCOMES_SYNC: Final = Stream("OUTCOMES_SYNC", (subjects.OUTCOMES_SYNC_ALL,), "memory", "workqueue", "new",
    max_bytes=512 * MIB, why="sync calls on their way back")  # fmt: skip
RECORDS: Final = Stream("RECORDS", (subjects.RECORDS_ALL,), "file", "limits", "new", max_age_s=DAY_S, max_bytes=20 * GIB,
    duplicate_window_s=1, why="the one final of each job, until every store has it")  # fmt: skip
REPLIES: Final = Stream("REPLIES", (subjects.REPLIES_ALL,), "memory", "limits", "old", max_age_s=120, max_bytes=256 * MIB,
    max_msgs_per_subject=1, duplicate_window_s=1, why="sync answers, ahead of their records")  # fmt: skip
STATES: Final = Stream("STATES", (subjects.STATES_ALL,), "file", "limits", "old", max_age_s=DAY_S, max_bytes=GIB,
    max_msgs_per_subject=8, duplicate_window_s=1, allow_ttl=True, why="PENDING and PROCESSING of unfinished jobs")  # fmt: skip
EVENTS: Final = Stream("EVENTS", (subjects.EVENTS_ALL,), "file", "limits", "old", max_age_s=7 * DAY_S, max_bytes=4 * GIB,
    why="what tenants publish")  # fmt: skip
LOGS: Final = Stream("LOGS", (subjects.LOGS_ALL,), "file", "limits", "old", max_age_s=HOUR_S, max_bytes=512 * MIB,
    duplicate_window_s=1, why="live tail of what functions print")  # fmt: skip
CAPACITY: Final = Stream("CAPACITY", (subjects.CAPACITY_ALL,), "memory", "limits", "old", max_age_s=10, max_bytes=16 * MIB,
    max_msgs_per_subject=1, duplicate_window_s=1, why="the last report of each executor")  # fmt: skip
AI: Final = Stream("AI", (subjects.AI_REQUESTS_ALL,), "memory", "workqueue", "new", max_bytes=256 * MIB,
    why="requests to the model node")  # fmt: skip
AI_TOKENS: Final = Stream("AI_TOKENS", (subjects.AI_TOKENS_ALL,), "memory", "limits", "old", max_age_s=120,
    max_bytes=256 * MIB, duplicate_window_s=1, why="answers of the model node, piece by piece")  # fmt: skip
DEAD: Final = Stream("DEAD", (subjects.DEAD_ALL,), "file", "limits", "old", max_age_s=30 * DAY_S, max_bytes=4 * GIB,
    duplicate_window_s=DUPLICATES_S, why="jobs that used up their attempts")  # fmt: skip
TRACES: Final = Stream("TRACES", (subjects.TRACES_ALL,), "file", "limits", "old", max_age_s=DAY_S, max_bytes=256 * MIB,
    duplicate_window_s=1, why="sampled spans, for the built-in trace view")  # fmt: skip
OBJECTS_BODIES: Final = Stream("OBJECTS_BODIES", (subjects.objects_in("bodies"),), "file", "limits", "new",
    max_age_s=DAY_S, max_bytes=20 * GIB, duplicate_window_s=1, why="large inputs, results and logs; output files")  # fmt: skip
OBJECTS_CODE: Final = Stream("OBJECTS_CODE", (subjects.objects_in("code"),), "file", "limits", "new",
    max_bytes=20 * GIB, duplicate_window_s=1, why="code bundles")  # fmt: skip


def bucket(
    name: str, storage: Literal["file", "memory"], *, why: str, max_age_s: float = 0, ttl: bool = False, max_bytes: int = GIB
) -> Stream:
    """A key-value bucket is a stream that keeps the last message of each subject."""
    return Stream(f"KV_{name}", (f"$KV.{name}.>",), storage, "limits", "new", max_age_s=max_age_s, max_bytes=max_bytes,
        max_msgs_per_subject=1, duplicate_window_s=1, allow_ttl=ttl, allow_rollup=True, why=why)  # fmt: skip


FUNCTIONS: Final = bucket("FUNCTIONS", "file", why="the registry: heads and versions of functions")
KEYS: Final = bucket("KEYS", "file", why="API keys, hashed")
LEASES: Final = bucket("LEASES", "file", ttl=True, max_bytes=16 * MIB,
    why="who holds a role now; in a file, so that its revisions, which are the epochs, only rise")  # fmt: skip
IDEMPOTENCY: Final = bucket("IDEMPOTENCY", "file", max_age_s=DAY_S, why="callers' own keys")

STREAMS: Final = (CALLS, JOBS, RUNS, RUNS_SYNC, OUTCOMES, OUTCOMES_SYNC, RECORDS, REPLIES, STATES, EVENTS, LOGS, CAPACITY,
    AI, AI_TOKENS, DEAD, TRACES, OBJECTS_BODIES, OBJECTS_CODE, FUNCTIONS, KEYS, LEASES, IDEMPOTENCY)  # fmt: skip
MEMORY_STREAMS: Final = tuple(stream for stream in STREAMS if stream.storage == "memory")
FILE_STREAMS: Final = tuple(stream for stream in STREAMS if stream.storage == "file")


def executor_consumer(executor: str) -> str:
    """The consumer of one executor, on RUNS and on RUNS_SYNC."""
    return f"x_{executor}"


def function_consumer(tenant: str, function: str) -> str:
    """The consumer of one function on JOBS. No name holds a `=`, so that no two functions share one."""
    return f"f_{tenant}={function}"


SCHEDULER_CONSUMER: Final = "scheduler"

#: What the broker's JetStream must be allowed at least: the sum of what the streams may hold.
FILE_BYTES_MAX: Final = sum(stream.max_bytes for stream in FILE_STREAMS)
MEMORY_BYTES_MAX: Final = sum(stream.max_bytes for stream in MEMORY_STREAMS)


def store_consumer(store: str) -> str:
    """The consumer of one store on RECORDS."""
    return f"store_{store}"


AI_CONSUMER: Final = "ai-proxy"
