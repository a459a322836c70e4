"""Streams are made once; what is missing or altered is said with its fix, and never quietly made again (PROMISES 31)."""

import pytest

from hearth_contracts import streams
from hearth_kit import provision

pytestmark = pytest.mark.broker

FILES = tuple(stream.name for stream in streams.FILE_STREAMS)


@pytest.fixture
async def fresh(own_broker):
    from hearth_kit import nats_bus

    async with nats_bus.connect(url=own_broker.url, instance="test") as bus:
        await provision.provision(bus)
        yield bus


async def test_every_stream_is_made_as_it_is_written_down(fresh):
    assert await provision.problems(fresh, tuple(stream.name for stream in streams.STREAMS)) == {}
    for stream in streams.STREAMS:
        info = await fresh.stream_info(stream.name)
        wanted = stream.config()
        assert {key: info.config.get(key) for key in wanted} == wanted, stream.name
        assert info.config["allow_direct"] is True


async def test_making_them_again_changes_nothing(fresh):
    await fresh.publish("hearth.v1.jobs.acme.resize", b"kept")
    await provision.provision(fresh)
    assert (await fresh.stream_info("JOBS")).messages == 1


async def test_a_stream_deleted_by_hand_is_reported_with_its_fix(fresh):
    await fresh._api_call("STREAM.DELETE.RECORDS")
    wrong = await provision.problems(fresh, FILES)
    assert list(wrong) == ["RECORDS"]
    assert "missing" in wrong["RECORDS"]
    assert "./hearth doctor --fix --remake RECORDS" in wrong["RECORDS"]
    assert await provision.remake_memory(fresh) == []
    assert await fresh.stream_info("RECORDS") is None


@pytest.mark.parametrize(("setting", "value"), [
    ("max_age", 3_600_000_000_000), ("max_msgs_per_subject", 1), ("subjects", ["hearth.v1.records.acme.>"]), ("discard", "old"),
])  # fmt: skip
async def test_a_stream_altered_by_hand_is_reported_with_its_fix(fresh, setting, value):
    config = streams.RECORDS.config() | {setting: value}
    await fresh._api_call("STREAM.UPDATE.RECORDS", config)
    wrong = await provision.problems(fresh, FILES)
    assert list(wrong) == ["RECORDS"]
    assert f"({setting})" in wrong["RECORDS"]
    assert "./hearth doctor --fix --remake RECORDS" in wrong["RECORDS"]


async def test_memory_streams_are_made_again_and_named(fresh):
    assert await provision.remake_memory(fresh) == []
    await fresh._api_call("STREAM.DELETE.CALLS")
    await fresh._api_call("STREAM.DELETE.REPLIES")
    assert await provision.remake_memory(fresh) == ["CALLS", "REPLIES"]
    assert (await fresh.stream_info("CALLS")).messages == 0


async def test_the_schedulers_consumers_can_be_made(fresh):
    for spec in provision.scheduler_consumers():
        await fresh.ensure_consumer(spec)
        assert (await fresh.consumer_info(spec.stream, spec.name)).pending == 0
