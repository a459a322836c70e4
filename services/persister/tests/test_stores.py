"""What is published is in the stores: real broker, real disk, real process."""

import asyncio
from pathlib import Path

import pytest

from hearth_contracts import streams
from hearth_persister import reading

pytestmark = pytest.mark.broker


def jobs_in(store: Path) -> set[str]:
    return {record.job for record in reading.read(store)} if store.exists() else set()


async def test_a_record_is_in_the_store_within_a_second_and_settled(platform, records, bus, until):
    await platform.start()
    published = await records.one(log=b"hi\n")

    await until(lambda: jobs_in(platform.store("local")), timeout_s=3)

    (found,) = reading.read(platform.store("local"))
    assert found.meta == published.record
    assert (found.input, found.result, found.log) == (b'{"name":"ada"}', b'"hello ada"', b"hi\n")

    async def settled() -> bool:
        info = await bus.consumer_info("RECORDS", streams.store_consumer("local"))
        return info is not None and info.ack_floor >= published.sequence

    for _ in range(100):
        if await settled():
            break
        await asyncio.sleep(0.02)
    assert await settled()


async def test_two_stores_hold_the_same_bytes(platform, records, until):
    await platform.start("a", "b")
    await records.many(3000)
    _, content = await records.large(3 * 1024 * 1024 + 17)

    await until(lambda: len(jobs_in(platform.store("a"))) == len(jobs_in(platform.store("b"))) == 3001)

    found = {name: reading.inspect(platform.store(name)) for name in "ab"}
    assert found["a"].clean and found["b"].clean
    assert found["a"].fingerprints == found["b"].fingerprints
    assert set(found["a"].fingerprints) == set(records.published)
    files = {name: {str(p.relative_to(platform.store(name))): p.read_bytes() for p in platform.store(name).rglob("*") if p.is_file()} for name in "ab"}
    assert files["a"] == files["b"]
    assert any(record.result == content for record in reading.read(platform.store("a")))


async def test_a_stop_writes_what_is_here_and_a_start_carries_on(platform, records, until):
    first = await platform.start(env={"HEARTH_SEGMENT_AGE_S": "60"})
    await records.many(50)
    await until(lambda: first.said("writing"))
    await asyncio.sleep(0.3)

    assert await first.stop() == 0
    assert len(jobs_in(platform.store("local"))) == 50

    await platform.start()
    await records.many(50)
    await until(lambda: len(jobs_in(platform.store("local"))) == 100)
    assert reading.inspect(platform.store("local")).clean
