"""Recorded messages put back on the bus, as an older release, a backup or a mistake would."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth_contracts import subjects
from hearth_contracts.errors import InvalidName

EXAMPLES = Path(__file__).resolve().parents[2] / "contracts/examples"
Meta = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """One message of the corpus, and where it goes."""

    label: str
    name: str
    subject: str
    text: str
    is_entry: bool = False
    """A key's value: the text is the body."""

    @property
    def job(self) -> str:
        """The job that somebody has to bring to an end because of it; empty where there is none."""
        meta = json.loads(self.text)
        if self.label in ("call.v1", "job.v1"):
            return str(meta["job"])
        return str(meta["run"]["call"]["job"]) if self.label.startswith("outcome") else ""

    @property
    def function(self) -> tuple[str, str]:
        """Tenant and name of the function that it is about."""
        call = _call(json.loads(self.text))
        return call["tenant"], call["function"]


def _call(meta: Meta) -> Meta:
    call: Meta = meta.get("run", meta).get("call", meta.get("call", meta))
    return call


def _outcome(meta: Meta, *, sync: bool) -> str:
    call = _call(meta)
    return subjects.outcome(call["tenant"], call["function"], call["job"], sync=sync)


#: Contract -> its subject, from what the message says. `instance` is a living process of the kind that listens.
SUBJECTS: dict[str, Callable[[Meta, dict[str, str]], str]] = {
    "call.v1": lambda meta, living: subjects.call(meta["tenant"], meta["function"]),
    "job.v1": lambda meta, living: subjects.job(meta["tenant"], meta["function"]),
    "run.v1": lambda meta, living: subjects.run(living["executor"], _call(meta)["job"], sync=False),
    "run-sync.v1": lambda meta, living: subjects.run(living["executor"], _call(meta)["job"], sync=True),
    "outcome.v1": lambda meta, living: _outcome(meta, sync=False),
    "outcome-sync.v1": lambda meta, living: _outcome(meta, sync=True),
    "record.v1": lambda meta, living: subjects.record(meta["tenant"], meta["job"]),
    "reply.v1": lambda meta, living: subjects.reply(living["gateway"], meta["job"]),
    "state.v1": lambda meta, living: subjects.state(meta["tenant"], meta["job"]),
    "log.v1": lambda meta, living: subjects.log("acme", meta["job"]),
    "capacity.v1": lambda meta, living: subjects.capacity(living["executor"]),
    "ai-request.v1": lambda meta, living: subjects.ai_request("llama"),
    "ai-tokens.v1": lambda meta, living: subjects.ai_tokens(living["gateway"], "r1"),
    "dead.v1": lambda meta, living: subjects.dead("acme", _call(meta)["job"]),
    "spans.v1": lambda meta, living: subjects.trace("ab" * 16),
    "event.v1": lambda meta, living: subjects.event("acme", "camera.1"),
    "object.v1": lambda meta, living: subjects.object_meta("bodies", "an-example"),
    "code-object.v1": lambda meta, living: subjects.object_meta("code", "an-example"),
    "control.v1": lambda meta, living: subjects.control(living["executor"]),
    "depths.v1": lambda meta, living: subjects.depths("scheduler-0"),
    "presence.v1": lambda meta, living: subjects.presence("gateway", "gateway-0"),
    "invoke.v1": lambda meta, living: subjects.invoke("acme", "hello"),
    "chunk.v1": lambda meta, living: subjects.chunk(living["gateway"], meta["job"]),
    "moved.v1": lambda meta, living: subjects.moved(living["gateway"]),
    "archive.v1": lambda meta, living: subjects.ARCHIVE,
    "function-head.v1": lambda meta, living: "$KV.FUNCTIONS.example.an-example",
    "function-version.v1": lambda meta, living: "$KV.FUNCTIONS.example.an-example.1",
    "api-key.v1": lambda meta, living: "$KV.KEYS.an-example",
    "idempotency.v1": lambda meta, living: "$KV.IDEMPOTENCY.an-example",
    "lease.v1": lambda meta, living: "$KV.LEASES.an-example",
}
#: Of one service's own mind, never on the bus by themselves: answers, and what a person writes.
ANSWERS = {"archive-answer.v1", "control-answer.v1", "moved-answer.v1", "function-spec.v1"}


def corpus(living: dict[str, str]) -> list[Recorded]:
    """Every recorded message of every release, addressed to those who live today, under today's epoch."""
    found: list[Recorded] = []
    for path in sorted(EXAMPLES.glob("*/*.json")):
        label = path.parent.name
        if label in ANSWERS:
            continue
        meta = json.loads(path.read_text())
        if "epoch" in meta:
            meta["epoch"] = 0
        if label.startswith("run") or label == "capacity.v1":
            meta["executor"] = living["executor"]
        try:
            subject = SUBJECTS[label](meta, living)
        except InvalidName as error:
            raise AssertionError(f"{path}: {error}") from error
        found.append(Recorded(label, path.stem, subject, json.dumps(meta), subject.startswith("$KV")))
    return found
