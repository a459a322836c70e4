"""Each service's credentials tried on every other subject, stream and bucket: the broker refuses (PROMISES 29). What each
needs is allowed: see `test_needs.py`.

The table of who may say and hear what is written here by hand, from the design, and not taken from the lists under test.
"""

import itertools

import nats.errors
import pytest

from hearth_contracts import names, registry, streams, subjects
from hearth_kit import errors

from .conftest import INSTANCES, OTHER

pytestmark = pytest.mark.broker

JOB = names.new_job("resize", 1.0)
EXECUTOR = INSTANCES["executor"]
G, S, X, A, P = "gateway", "scheduler", "executor", "ai-proxy", "persister"

#: Subject -> who may say it, who may hear it.
SUBJECTS = {
    subjects.call("acme", "resize"): (G, ""),
    subjects.job("acme", "resize"): (G + S, ""),
    subjects.run(EXECUTOR, JOB, sync=False): (S, ""),
    subjects.run(EXECUTOR, JOB, sync=True): (S, ""),
    subjects.outcome("acme", "resize", JOB, sync=False): (X + S, ""),
    subjects.outcome("acme", "resize", JOB, sync=True): (X + S, ""),
    subjects.record("acme", JOB): (X + S + G, G + S),
    subjects.reply("gateway-1", JOB): (X + S, G),
    subjects.reply("gateway-2", JOB): (X + S, ""),
    subjects.state("acme", JOB): (G + S + X, G),
    subjects.log("acme", JOB): (X, G),
    subjects.capacity(EXECUTOR): (X, G + S),
    subjects.capacity(OTHER): ("", G + S),
    subjects.event("acme", "camera.1"): (G + X, G),
    subjects.ai_request("llama3"): (G + X, ""),
    subjects.ai_tokens("gateway-1", "r1"): (A, G),
    subjects.ai_tokens(EXECUTOR, "r1"): (A, X),
    subjects.ai_tokens(OTHER, "r1"): (A, ""),
    subjects.dead("acme", JOB): (S + X, ""),
    subjects.trace("ab" * 16): (G + S + X + A + P, ""),
    subjects.object_chunk("bodies", "b1", 0): (G + X + P, ""),
    subjects.object_chunk("code", "c1", 0): (G, ""),
    subjects.control(EXECUTOR): (G + S, X),
    subjects.control(OTHER): (G + S, ""),
    subjects.depths("scheduler-1"): (S, G),
    subjects.moved("gateway-1"): (S + G, G),
    subjects.moved("gateway-2"): (S + G, ""),
    subjects.chunk("gateway-1", JOB): (X, G),
    subjects.invoke("acme", "resize"): ("", G),
    subjects.ARCHIVE: (G + S, P),
    **{subjects.presence(service, instance): (service, G) for service, instance in INSTANCES.items()},
    subjects.presence("gateway", "gateway-2"): ("", G),
    "$KV.FUNCTIONS.acme.resize": (G, G + S + X),
    "$KV.KEYS.ab12": (G, G),
    "$KV.LEASES.scheduler": (S, G + S),
    "$KV.LEASES.store.folder": (S + P, G + S + P),
    "$KV.IDEMPOTENCY.ab12": (G, G),
    **{f"_INBOX.{instance}.m.1": ("", service) for service, instance in INSTANCES.items()},
    f"_INBOX.{OTHER}.m.1": ("", ""),
    "$SYS.REQ.SERVER.PING": ("", ""),
    "hearth.v1.unknown": ("", ""),
    "hearth.v2.calls.acme.resize": ("", ""),
}  # fmt: skip

WORK = ("CALLS", "JOBS", "RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC", "AI")
#: Stream -> whose consumer is pulled and settled by whom.
PULLED = {
    "CALLS": (S, "scheduler"), "JOBS": (S, "f_acme=resize"), "OUTCOMES": (S, "scheduler"), "OUTCOMES_SYNC": (S, "scheduler"),
    "RUNS": (X, f"x_{EXECUTOR}"), "RUNS_SYNC": (X, f"x_{EXECUTOR}"), "RECORDS": (P, "store_folder"), "AI": (A, "ai-proxy"),
}  # fmt: skip
READ = {
    "RUNS": S + G, "RUNS_SYNC": S + G, "CALLS": G, "JOBS": G, "OUTCOMES": G + S, "OUTCOMES_SYNC": G + S, "RECORDS": G + S + X + P, "REPLIES": G + S, "STATES": G + S, "LOGS": G,
    "CAPACITY": G + S, "DEAD": G, "TRACES": G, "OBJECTS_BODIES": G + X + P, "OBJECTS_CODE": G + X + P, "KV_FUNCTIONS": G + S + X,
    "KV_KEYS": G, "KV_LEASES": G + S, "KV_IDEMPOTENCY": G,
}  # fmt: skip
PURGED = {"RUNS": S, "STATES": S, "RUNS_SYNC": S, "RECORDS": P, "OBJECTS_BODIES": G + X, "OBJECTS_CODE": G}


def api():
    """Requests to the broker's own interface -> who may make them."""
    for stream in streams.STREAMS:
        name = stream.name
        for verb in ("DELETE", "UPDATE", "SNAPSHOT", "RESTORE", "MSG.GET"):
            yield f"$JS.API.STREAM.{verb}.{name}", ""
        yield f"$JS.API.STREAM.CREATE.{name}", S if stream.storage == "memory" else ""
        yield f"$JS.API.STREAM.PURGE.{name}", PURGED.get(name, "")
        yield f"$JS.API.STREAM.MSG.DELETE.{name}", S if name == "JOBS" else ""
        makes = S if name in WORK else P if name == "RECORDS" else ""
        yield f"$JS.API.CONSUMER.CREATE.{name}.x", makes
        yield f"$JS.API.CONSUMER.DELETE.{name}.x", makes
        yield f"$JS.API.CONSUMER.MSG.NEXT.{name}.x_{OTHER}", {"JOBS": S, "RECORDS": P}.get(name, "")
        yield f"$JS.ACK.{name}.x_{OTHER}.1.1.1.1.0", {"JOBS": S, "RECORDS": P}.get(name, "")
        who, consumer = PULLED.get(name, ("", "x"))
        yield f"$JS.API.CONSUMER.MSG.NEXT.{name}.{consumer}", who
        yield f"$JS.ACK.{name}.{consumer}.1.1.1.1.0", who
        yield f"$JS.API.DIRECT.GET.{name}", READ.get(name, "")
    yield "$JS.API.INFO", ""
    yield "$JS.API.STREAM.LIST", ""
    yield "$JS.API.STREAM.NAMES", ""


@pytest.mark.parametrize("service", registry.SERVICES)
async def test_a_service_may_say_and_hear_what_is_its_own_and_no_more(guarded, service):
    assert len(SUBJECTS) >= 40
    wrong = []
    async with guarded.raw(INSTANCES[service]) as client:
        for subject, (sayers, hearers) in SUBJECTS.items():
            if await client.may_say(subject) != (service in sayers):
                wrong.append(f"say {subject}: {'refused' if service in sayers else 'allowed'}")
            if await client.may_hear(subject) != (service in hearers):
                wrong.append(f"hear {subject}: {'refused' if service in hearers else 'allowed'}")
        for subject in (">", "*", "hearth.>", "hearth.v1.*.>", "$KV.>", "$JS.>", "$SYS.>", "_INBOX.>", "_INBOX.*.m.*"):
            if await client.may_hear(subject):
                wrong.append(f"hear {subject}: allowed")
    assert wrong == []


@pytest.mark.parametrize("service", registry.SERVICES)
async def test_a_service_may_ask_of_the_broker_what_it_must_and_no_more(guarded, service):
    wrong = []
    async with guarded.raw(INSTANCES[service]) as client:
        for subject, allowed in api():
            if await client.may_say(subject) != (service in allowed):
                wrong.append(f"{subject}: {'refused' if service in allowed else 'allowed'}")
    assert wrong == []


async def test_the_question_bites(guarded):
    """The same questions as the user of full rights: nothing is refused, so that a refusal above means something."""
    async with guarded.raw("bootstrap") as client:
        for subject in itertools.islice(SUBJECTS, 12):
            assert await client.may_say(subject)
            assert await client.may_hear(subject)


async def test_a_wrong_password_and_an_unknown_user_are_refused(guarded):
    from hearth_kit import nats_bus

    for user, password in (("gateway-1", "wrong"), ("nobody", "pw"), ("", "")):
        with pytest.raises(errors.NotConnected, match="Authorization"):
            async with nats_bus.connect(url=guarded.url, instance="x", user=user, password=password, wait_s=0.6):
                pass


async def test_a_tenant_says_its_events_and_calls_its_functions_and_nothing_else(guarded):
    async with guarded.raw("acme-publisher") as client:
        assert await client.may_say("hearth.v1.events.acme.camera.1")
        assert await client.may_say("hearth.v1.invoke.acme.resize")
        for subject in [
            *SUBJECTS,
            "hearth.v1.events.other.x",
            "hearth.v1.invoke.other.x",
            "hearth.v1.events.acme",
            "$JS.API.INFO",
        ]:
            if subject not in (subjects.event("acme", "camera.1"), subjects.invoke("acme", "resize")):
                assert not await client.may_say(subject), subject
        for subject in [subject for subject in SUBJECTS if not subject.startswith("_INBOX")] + [
            ">",
            "hearth.>",
            "hearth.v1.events.>",
        ]:
            assert not await client.may_hear(subject), subject


async def test_a_tenants_reply_subject_stays_in_its_account(guarded):
    """The broker would publish its acknowledgement on whatever reply subject an event carries (DELIVERY rule 15)."""
    async with (
        guarded.raw("bootstrap") as services,
        guarded.raw("acme-publisher") as acme,
        guarded.raw("other-publisher") as other,
    ):
        heard = []
        for client in (services, other):
            for subject in ("hearth.v1.jobs.>", "_INBOX.>"):

                async def keep(message):
                    heard.append(message.subject)

                await client.subscribe(subject, cb=keep)
            await client.flush()
        await acme.publish("hearth.v1.events.acme.a", b"x", reply="hearth.v1.jobs.acme.resize")
        await acme.publish("hearth.v1.events.acme.b", b"x", reply="_INBOX.gateway-1.m.7")
        await acme.flush()
        [stored] = [await _last(services, subject) for subject in ("hearth.v1.events.acme.b",)]
        assert stored == b"x"
        for client in (services, other):
            await client.flush()
        assert [subject for subject in heard if subject.startswith(("hearth.v1.jobs", "_INBOX.gateway"))] == []


async def _last(client, subject):
    """Once the event is kept, whatever the broker had to say about it was said."""
    for _ in range(200):
        try:
            message = await client.request(f"$JS.API.DIRECT.GET.EVENTS.{subject}", timeout=1)
        except nats.errors.Error:
            continue
        if message.headers is None or "Status" not in message.headers:
            return message.data
    raise AssertionError("the event was not kept")
