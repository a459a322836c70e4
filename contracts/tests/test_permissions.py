"""Permission lists: nobody may say or consume what is not theirs. `tests/permissions` asks the real broker the same."""

import pytest

from hearth_contracts import permissions, registry, streams

from .test_subjects import ONE, covers

INSTANCES = {
    registry.GATEWAY: "gateway-1",
    registry.SCHEDULER: "scheduler-1",
    registry.EXECUTOR: "edge-1-0a1b2c3d",
    registry.AI_PROXY: "ai-proxy-1",
    registry.PERSISTER: "persister-1",
}
WORK = ("CALLS", "JOBS", "RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC", "AI")
EVERY = pytest.mark.parametrize("service", registry.SERVICES)


def of(service, instance=""):
    return permissions.for_service(service, instance or INSTANCES[service])


def may_publish(service, subject, instance=""):
    return any(covers(allowed, subject) for allowed in of(service, instance).publish)


@EVERY
def test_a_service_says_what_it_produces_and_nothing_else(service):
    for contract in registry.CONTRACTS:
        subject = ONE[contract.label].replace("edge-0a1b2c3d", INSTANCES[registry.EXECUTOR])
        subject = subject.replace("presence.gateway.gateway-1", f"presence.{service}.{INSTANCES[service]}")
        assert may_publish(service, subject) == (service in contract.producers), (contract.label, subject)


@EVERY
def test_a_service_hears_what_it_listens_to_its_buckets_and_its_own_inbox(service):
    heard = of(service).subscribe
    allowed = [contract.subject for contract in registry.CONTRACTS if service in contract.listeners]
    buckets = [f"$KV.{use.bucket}.>" for use in registry.BUCKETS if service in use.readers or service in use.writers]
    for subject in heard:
        plain = subject.replace("*", "x").replace(">", "x")
        inboxes = subject == f"_INBOX.{INSTANCES[service]}.>"
        leases = service == registry.PERSISTER and subject == "$KV.LEASES.store.*"
        assert inboxes or leases or subject in buckets or any(covers(pattern, plain) for pattern in allowed), subject


@EVERY
def test_no_service_holds_a_master_key(service):
    for subject in (*of(service).publish, *of(service).subscribe):
        assert not covers(subject, "anything"), subject
        assert not subject.startswith((">", "*", "$SYS", "_INBOX.>", "_INBOX.*")), subject
        assert subject not in ("$JS.>", "$JS.API.>", "$JS.ACK.>", "$KV.>", "hearth.>", "hearth.v1.>"), subject
    for stream in streams.STREAMS:
        for verb in ("DELETE", "UPDATE", "SNAPSHOT", "RESTORE", "MSG.GET", "LEADER.STEPDOWN", "PEER.REMOVE"):
            assert not may_publish(service, f"$JS.API.STREAM.{verb}.{stream.name}"), (verb, stream.name)


@EVERY
def test_the_scheduler_alone_makes_and_removes_consumers_of_work(service):
    for stream in streams.STREAMS:
        allowed = (service == registry.SCHEDULER and stream.name in WORK) or (
            service == registry.PERSISTER and stream.name == "RECORDS"
        )
        for subject in (
            f"$JS.API.CONSUMER.CREATE.{stream.name}.x",
            f"$JS.API.CONSUMER.CREATE.{stream.name}.x.hearth.v1.jobs.acme.resize",
            f"$JS.API.CONSUMER.DELETE.{stream.name}.x",
        ):
            assert may_publish(service, subject) == allowed, subject


@EVERY
def test_streams_are_made_and_emptied_by_who_must(service):
    purge = {registry.SCHEDULER: {"RUNS", "RUNS_SYNC", "STATES"}, registry.PERSISTER: {"RECORDS"},
             registry.GATEWAY: {"OBJECTS_BODIES", "OBJECTS_CODE"}, registry.EXECUTOR: {"OBJECTS_BODIES"}}  # fmt: skip
    for stream in streams.STREAMS:
        made = service == registry.SCHEDULER and stream.storage == "memory"
        assert may_publish(service, f"$JS.API.STREAM.CREATE.{stream.name}") == made, stream.name
        if may_publish(service, f"$JS.API.STREAM.PURGE.{stream.name}"):
            assert stream.name in purge.get(service, set()), stream.name


@EVERY
def test_a_service_takes_from_its_own_consumers_only(service):
    mine = {
        (use.stream.name, use.name.format(instance=INSTANCES[service])) for use in registry.CONSUMERS if use.service == service
    }
    for subject in of(service).publish:
        for prefix in ("$JS.API.CONSUMER.MSG.NEXT.", "$JS.ACK."):
            if subject.startswith(prefix):
                stream, consumer, *rest = subject.removeprefix(prefix).split(".")
                assert (stream, consumer) in mine, subject
                assert rest == ([">"] if prefix == "$JS.ACK." else [])


def test_an_executor_can_do_nothing_as_another():
    one, other = of(registry.EXECUTOR, "edge-1-0a1b2c3d"), "edge-2-ffffffff"
    for subject in (
        f"$JS.API.CONSUMER.MSG.NEXT.RUNS.x_{other}", f"$JS.API.CONSUMER.MSG.NEXT.RUNS_SYNC.x_{other}",
        f"$JS.ACK.RUNS.x_{other}.1.2.3.4.5", f"$JS.ACK.RUNS_SYNC.x_{other}.1.2.3.4.5", f"hearth.v1.capacity.{other}",
        f"hearth.v1.presence.executor.{other}",
    ):  # fmt: skip
        assert not any(covers(allowed, subject) for allowed in one.publish), subject
    for subject in (f"_INBOX.{other}.m.1", f"hearth.v1.control.{other}", f"hearth.v1.ai.tokens.{other}.r1"):
        assert not any(covers(allowed, subject) for allowed in one.subscribe), subject


@EVERY
def test_buckets_are_written_by_their_owner(service):
    for use in registry.BUCKETS:
        assert may_publish(service, f"$KV.{use.bucket}.some.key") == (service in use.writers), use.bucket


def test_a_tenant_reaches_its_own_events_and_functions_alone():
    mine = permissions.for_tenant("acme")
    assert any(covers(allowed, "hearth.v1.events.acme.camera.1") for allowed in mine.publish)
    assert any(covers(allowed, "hearth.v1.invoke.acme.resize") for allowed in mine.publish)
    for subject in (
        "hearth.v1.events.other.x",
        "hearth.v1.invoke.other.x",
        "hearth.v1.jobs.acme.x",
        "$JS.API.INFO",
        "$KV.KEYS.x",
    ):
        assert not any(covers(allowed, subject) for allowed in mine.publish), subject


@pytest.mark.parametrize("planted", [
    ("ai-proxy", "hearth.v1.records.acme.x.y"), ("persister", "hearth.v1.jobs.acme.resize"), ("executor", "hearth.v1.runs.a.b"),
])  # fmt: skip
def test_the_rule_bites_on_a_producer_too_many(planted, monkeypatch):
    service, subject = planted
    assert not may_publish(service, subject)
    contract = next(one for one in registry.CONTRACTS if covers(one.subject, subject))
    widened = tuple(
        type(one)(**{field: getattr(one, field) for field in one.__slots__} | {"producers": (*one.producers, service)})
        if one is contract else one for one in registry.CONTRACTS
    )  # fmt: skip
    monkeypatch.setattr(registry, "CONTRACTS", widened)
    assert may_publish(service, subject)
