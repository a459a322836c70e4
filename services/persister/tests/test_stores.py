"""What is published is in the stores: real broker, real disk, real process."""

import time

import pytest

from hearth_contracts import subjects
from hearth_contracts.enums import State
from hearth_persister import reading

pytestmark = pytest.mark.broker


async def test_a_record_is_in_the_store_within_a_second_and_settled(platform, records, stores, until):
    process = await platform.start(env={"HEARTH_SEGMENT_AGE_S": "0.7", "HEARTH_SEGMENT_MARGIN_S": "0.2"})
    await until(lambda: process.said("writing"))
    published = await records.one(log=b"hi\n")
    began = time.monotonic()

    await until(stores.jobs)

    assert time.monotonic() - began < 1.5  # the promise is one second; this machine is shared
    (found,) = reading.read(platform.store("local"))
    assert found.meta == published.record
    assert (found.input, found.result, found.log) == (b'{"name":"ada"}', b'"hello ada"', b"hi\n")
    await stores.complete(records=records)


async def test_two_stores_hold_the_same_files(platform, records, stores):
    await platform.start("a", "b")
    await records.many(3000)
    await records.one(state=State.FAILED)
    published, content = await records.large(3 * 1024 * 1024 + 17)

    await stores.complete("a", "b", records=records)

    files = [
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (platform.store("a"), platform.store("b"))
    ]
    assert files[0] == files[1]
    (found,) = (record for record in reading.read(platform.store("b")) if record.job == published.record.job)
    assert found.result == content


async def test_a_store_that_catches_up_later_holds_the_same_files(platform, records, stores):
    await platform.start("a")
    await records.many(500, at_once=8)
    await stores.complete("a", records=records)
    await platform.processes[0].stop()

    await platform.start("a", "b")

    await stores.complete("a", "b", records=records)
    files = [
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (platform.store("a"), platform.store("b"))
    ]
    assert files[0] == files[1]


async def test_a_stop_stores_what_is_here_and_a_start_carries_on(platform, records, stores, bus, until):
    first = await platform.start("a", "b", env={"HEARTH_SEGMENT_AGE_S": "2"})
    await records.many(50)

    async def delivered() -> bool:
        infos = [await bus.consumer_info("RECORDS", f"store_{name}") for name in "ab"]
        return all(info is not None and info.pending == 0 and info.ack_pending for info in infos)

    await until(delivered)

    assert await first.stop() == 0

    stores.check("a", "b", records=records)
    await platform.start("a", "b")
    await records.many(50)
    await stores.complete("a", "b", records=records)


async def test_what_a_function_wants_not_kept_is_settled_and_not_kept(platform, records, stores, until):
    await platform.start(env={"HEARTH_SEGMENT_RECORDS_MAX": "64"})
    await records.many(300, persist=False)
    await until(stores.settled)
    last = max(published.sequence for published in records.published.values())

    async def settled() -> bool:
        return await stores.settled() >= last

    await until(settled)
    assert stores.jobs() == []
    await records.many(20)
    await stores.complete(records=records)


async def test_what_is_no_record_is_put_aside_and_holds_nothing_up(platform, records, stores, bus):
    await platform.start()
    await records.one()
    odd = await bus.publish(subjects.PREFIX + ".records.default.hello.x", b"\x00whatever", headers={"Hearth-Meta": "{]"})
    await bus.publish(subjects.PREFIX + ".records.default.hello.y", b"no meta at all")
    await records.one()

    await stores.complete(records=records)

    aside = sorted((platform.store("local") / "undecodable").rglob("*.msg"))
    assert len(aside) == 2
    assert aside[0].name == f"{odd.sequence:016d}.msg"
    assert b"\x00whatever" in aside[0].read_bytes()


async def test_records_near_the_largest_message_are_kept_within_bounded_memory(platform, records, stores):
    process = await platform.start("a", "b", env={"HEARTH_SEGMENT_AGE_S": "5"})
    body = bytes(range(256)) * 1000
    await records.many(150, at_once=8, given=body, log=body * 2)

    await stores.complete("a", "b", records=records)

    assert process.memory_mib < 150


async def test_a_large_body_is_copied_in_flat_memory(platform, records, stores):
    process = await platform.start("a", "b")
    await records.one()
    await stores.complete("a", "b", records=records)
    before = process.memory_mib

    await records.large(128 * 1024 * 1024)

    await stores.complete("a", "b", records=records)
    assert process.memory_mib - before < 40


async def test_a_body_that_has_left_the_broker_does_not_hold_up_its_record(platform, records, stores, until):
    lost = await records.one(result=b"x" * 500, large={"result": "gone"})
    kept = await records.one()
    await platform.start()

    async def settled() -> bool:
        return await stores.settled() >= kept.sequence

    await until(settled)
    found = {record.job: record for record in reading.read(platform.store("local"))}
    body = found[lost.record.job].stored_body("result")
    assert body is not None
    assert body.missing
    assert found[kept.record.job].result == b'"hello ada"'
