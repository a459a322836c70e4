"""Subject builders: whatever ids they are given, they build a subject of theirs or refuse (PROMISES 30)."""

import inspect
import random
import re

import pytest

from hearth_contracts import names, registry, streams, subjects
from hearth_contracts.errors import InvalidName

SAFE = re.compile(r"[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*")
HOSTILE = [
    ".",
    "*",
    ">",
    " ",
    "\r\n",
    "\n",
    "\0",
    "\t",
    "..",
    "а",
    "ａ",
    "\u200b",
    "\u2028",
    "é",
    "\x7f",
    "/",
    "%2e",
    "\r\nPUB x 0\r\n\r\n",
    "",
]
FINE = ["a", "acme", "resize", "gateway-1", "edge-1-0a1b2c3d", "=2E", "X", "0"]

#: Builders, with as many tokens as each puts behind the prefix; the last number is of the wildcard it may end in.
BUILDERS = {
    "call": 3, "job": 3, "run": 3, "outcome": 4, "record": 4, "reply": 3, "state": 4, "log": 4, "capacity": 2, "ai_request": 3,
    "ai_tokens": 4, "dead": 4, "trace": 2, "object_chunk": 4, "object_meta": 4, "control": 2, "chunk": 3, "invoke": 3, "depths": 2,
    "presence": 3, "moved": 2,
}  # fmt: skip
PREFIXES = {
    "runs_of": 2,
    "states_of": 2,
    "states_of_function": 3,
    "replies_of": 2,
    "chunks_of": 2,
    "ai_tokens_of": 3,
    "object_all": 3,
    "objects_in": 2,
}
#: Not of plain tokens: people choose the path of an event, and a job id has a form of its own.
EVENTS = {"event", "events_matching", "run_anywhere"}


def test_every_builder_is_listed_here():
    made = {name for name, value in vars(subjects).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert made == set(BUILDERS) | set(PREFIXES) | EVENTS


def ids(generate: random.Random) -> str:
    kind = generate.random()
    if kind < 0.4:
        return generate.choice(FINE)
    if kind < 0.5:
        return names.new_job("resize", generate.random() * 1e9)
    pieces = [generate.choice(HOSTILE if generate.random() < 0.5 else FINE) for _ in range(generate.randint(0, 3))]
    return "".join(pieces)


def build(name: str, generate: random.Random):
    builder = getattr(subjects, name)
    arguments, given = [], {}
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.name == "sync":
            given["sync"] = generate.random() < 0.5
        elif parameter.name == "number":
            arguments.append(generate.randint(0, 5000))
        else:
            arguments.append(ids(generate))
    return arguments, lambda: builder(*arguments, **given)


def test_a_hundred_thousand_ids_build_their_subject_or_are_refused():
    generate = random.Random(30)
    every = [*BUILDERS, *PREFIXES]
    built = refused = 0
    for number in range(100_000):
        name = every[number % len(every)]
        arguments, call = build(name, generate)
        try:
            subject = call()
        except InvalidName:
            refused += 1
            continue
        built += 1
        tokens = subject.removeprefix("hearth.v1.").split(".")
        if name in PREFIXES:
            assert tokens.pop() in ("*", ">")
            assert len(tokens) == PREFIXES[name], (arguments, subject)
        else:
            assert len(tokens) == BUILDERS[name], (arguments, subject)
        assert SAFE.fullmatch(".".join(tokens)), (arguments, subject)
        assert subject.startswith("hearth.v1.")
    assert built > 20_000
    assert refused > 20_000


@pytest.mark.parametrize("bad", [value for value in HOSTILE if value != "%2e"] + ["a.b", "a b"])
def test_each_builder_refuses_each_bad_token(bad):
    for name in [*BUILDERS, *PREFIXES]:
        if name == "ai_request" and bad:
            continue  # a foreign name: escaped, not refused
        builder = getattr(subjects, name)
        arguments = [5 if p.name == "number" else bad for p in inspect.signature(builder).parameters.values() if p.name != "sync"]
        options = {"sync": True} if "sync" in inspect.signature(builder).parameters else {}
        with pytest.raises(InvalidName):
            builder(*arguments, **options)
    with pytest.raises(InvalidName):
        subjects.event(bad, "a")
    with pytest.raises(InvalidName):
        subjects.event("acme", bad if bad != "a.b" else "a..b")


def test_the_check_bites():
    """The same run against a builder without its check finds one within a few ids."""
    generate = random.Random(30)
    naive = [f"hearth.v1.calls.{ids(generate)}.{ids(generate)}" for _ in range(200)]
    assert any(SAFE.fullmatch(subject) is None or subject.count(".") != 4 for subject in naive)


def covers(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


JOB = names.new_job("resize", 1.0)
#: One real subject of each contract.
ONE = {
    "call.v1": subjects.call("acme", "resize"), "job.v1": subjects.job("acme", "resize"),
    "run.v1": subjects.run("edge-0a1b2c3d", JOB, sync=False), "run-sync.v1": subjects.run("edge-0a1b2c3d", JOB, sync=True),
    "outcome.v1": subjects.outcome("acme", "resize", JOB, sync=False),
    "outcome-sync.v1": subjects.outcome("acme", "resize", JOB, sync=True),
    "record.v1": subjects.record("acme", JOB), "reply.v1": subjects.reply("gateway-1", JOB), "state.v1": subjects.state("acme", JOB),
    "log.v1": subjects.log("acme", JOB), "capacity.v1": subjects.capacity("edge-0a1b2c3d"), "ai-request.v1": subjects.ai_request("llama3.2:1b"),
    "ai-tokens.v1": subjects.ai_tokens("gateway-1", "r1"), "dead.v1": subjects.dead("acme", JOB), "spans.v1": subjects.trace("ab" * 16),
    "event.v1": subjects.event("acme", "camera.1.motion"), "object.v1": subjects.object_chunk("bodies", "b1", 0),
    "code-object.v1": subjects.object_meta("code", "c1"), "control.v1": subjects.control("edge-0a1b2c3d"),
    "depths.v1": subjects.depths("scheduler-1"), "presence.v1": subjects.presence("gateway", "gateway-1"),
    "invoke.v1": subjects.invoke("acme", "resize"), "chunk.v1": subjects.chunk("gateway-1", JOB), "moved.v1": subjects.moved("gateway-1"),
    "archive.v1": subjects.ARCHIVE,
}  # fmt: skip


def test_each_contract_has_its_own_subject_and_its_stream_takes_it():
    assert set(ONE) == {contract.label for contract in registry.CONTRACTS}
    for contract in registry.CONTRACTS:
        subject = ONE[contract.label]
        assert [other.label for other in registry.CONTRACTS if covers(other.subject, subject)] == [contract.label]
        holding = [stream.name for stream in streams.STREAMS if any(covers(taken, subject) for taken in stream.subjects)]
        assert holding == ([contract.stream.name] if contract.stream else []), contract.label


def test_prefixes_cover_what_they_stand_for():
    assert covers(subjects.runs_of("edge-0a1b2c3d", sync=True), ONE["run-sync.v1"])
    assert not covers(subjects.runs_of("edge-0a1b2c3d", sync=False), ONE["run-sync.v1"])
    assert covers(subjects.replies_of("gateway-1"), ONE["reply.v1"])
    assert not covers(subjects.replies_of("gateway-2"), ONE["reply.v1"])
    assert covers(subjects.chunks_of("gateway-1"), ONE["chunk.v1"])
    assert covers(subjects.ai_tokens_of("gateway-1"), ONE["ai-tokens.v1"])
    assert covers(subjects.object_all("bodies", "b1"), ONE["object.v1"])
    assert covers(subjects.events_matching("acme", "camera.*.motion"), ONE["event.v1"])
