"""Whatever is killed, stopped, filled or taken away: every store ends with every record, once, and with the same bytes."""

import asyncio
import json
import os
import shutil
import subprocess

import pytest

from hearth_contracts import streams, subjects
from hearth_contracts.fleet import Presence
from hearth_kit.provision import provision
from hearth_persister import reading

pytestmark = pytest.mark.broker


@pytest.mark.parametrize("failpoint", ["persist.before_link", "persist.after_put", "persist.between_stores"])
@pytest.mark.parametrize("nth", [1, 4, *(pytest.param(nth, marks=pytest.mark.long) for nth in (2, 3, 5))])
async def test_killed_at_a_step_both_stores_end_with_the_same_bytes(platform, records, stores, failpoint, nth):
    dying = await platform.start("a", "b", env={"HEARTH_FAILPOINT": f"{failpoint}:{nth}", "HEARTH_SEGMENT_RECORDS_MAX": "40"})
    await records.many(300, at_once=4)
    await records.large(300_000)
    assert await dying.ended() == -9
    first = min(published.sequence for published in records.published.values())
    for name in "ab":
        # Settled means on disk: the broker may let go of what every store has settled.
        assert await stores.settled(name) <= max(stores.last(name), first - 1)

    await platform.start("a", "b")
    await records.many(50)

    await stores.complete("a", "b", records=records)


async def test_killed_again_and_again_under_load_nothing_is_lost_or_doubled(platform, records, stores, until):
    async def load() -> None:
        await records.many(3000, at_once=4)

    loading = asyncio.create_task(load())
    for number in range(5):
        process = await platform.start("a", "b", ready=False)
        before = len(stores.jobs("a"))
        await until(lambda before=before: len(stores.jobs("a")) > before or loading.done(), what=f"progress {number}")
        process.kill()
        await process.ended()
    await loading
    await platform.start("a", "b")
    await stores.complete("a", "b", records=records)


async def test_a_store_that_fails_only_lags_and_catches_up_once_it_is_mended(platform, records, stores, until):
    wall = platform.store("b")
    wall.write_text("not a folder")
    process = await platform.start("a", "b")
    await records.many(200)
    await stores.complete("a", records=records)
    assert await stores.settled("b") < min(published.sequence for published in records.published.values())
    assert process.said("store fails")
    assert process.process.returncode is None

    wall.unlink()

    await stores.complete("a", "b", records=records)
    await until(lambda: process.said("store works again"))


async def test_a_store_that_fills_up_in_the_middle_catches_up_once_there_is_room(platform, records, stores, until):
    process = await platform.start("a", "b")
    await records.many(100)
    await stores.complete("a", "b", records=records)
    # New folders cannot be made: what a full disk or a lost mount looks like from here.
    segments = platform.store("b") / "segments"
    shutil.move(segments, platform.store("b") / "aside")
    segments.write_text("no folder")
    await records.many(300)
    await stores.complete("a", records=records)
    await until(lambda: process.said("store fails"))

    segments.unlink()
    shutil.move(platform.store("b") / "aside", segments)

    await stores.complete("a", "b", records=records)


@pytest.fixture
def tiny(platform):
    """A store on a disk of its own, nearly full."""
    root = platform.store("b")
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", root], check=True)  # needs root, as the engine does
    yield root
    subprocess.run(["umount", "-l", root], check=True)


def degraded(process, store):
    return [line for line in process.lines if line.get("event", "").startswith("store fails") and line.get("store") == store]


async def test_a_full_disk_is_tried_ever_less_often_and_said_once(platform, records, stores, bus, until, tiny):
    """The small file of a check fits on a disk that no segment fits on."""
    seen = []

    def heard(message):
        seen.append(message.meta(Presence).notes.get("store.b", ""))

    await bus.subscribe(subjects.PRESENCE_ALL, heard)
    filler = tiny / "filler"
    filler.write_bytes(b"x" * 232 * 1024)
    process = await platform.start("a", "b", env={"HEARTH_LOG_LEVEL": "DEBUG", "HEARTH_STORE_RETRY_S_MAX": "1.6"})
    await until(lambda: process.said("writing"))
    for _ in range(20):
        await records.one(result=json.dumps(os.urandom(2000).hex()).encode())
    await until(lambda: len(degraded(process, "b")) >= 5)

    failing = degraded(process, "b")
    assert [line["failures"] for line in failing[:5]] == [1, 2, 3, 4, 5]
    assert [line["wait_s"] for line in failing[:5]] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert [line["level"].lower() for line in failing] == ["warning"] + ["debug"] * (len(failing) - 1)
    assert not process.said("store works again")
    await until(lambda: sum(note.startswith("degraded") for note in seen) >= 3)
    since = {note.split(":")[0] for note in seen if note.startswith("degraded")}
    assert len(since) == 1, since
    assert all(note.startswith("degraded") for note in seen[seen.index(next(n for n in seen if n.startswith("degraded"))) :])

    filler.unlink()

    await stores.complete("a", "b", records=records)
    assert sum(line.get("event") == "store works again" for line in process.lines) == 1
    await until(lambda: seen[-1] == "writing")


async def test_a_store_that_nothing_waits_for_works_again_once_it_may_be_written_to(platform, records, stores, until):
    wall = platform.store("b")
    wall.write_text("not a folder")
    process = await platform.start("a", "b")
    await until(lambda: process.said("store fails"))

    wall.unlink()

    await until(lambda: process.said("store works again"))


async def test_of_two_persisters_one_writes_and_the_other_takes_over(platform, records, stores, until):
    first = await platform.start("a", "b", instance="persister-1")
    await until(lambda: sum(line.get("event") == "writing" for line in first.lines) == 2)
    second = await platform.start("a", "b", instance="persister-2")
    await records.many(500)
    await stores.complete("a", "b", records=records)
    assert not second.said("writing")

    first.kill()
    await records.many(500)

    await stores.complete("a", "b", records=records)
    assert second.said("writing")


async def test_a_persister_that_was_stopped_and_wakes_late_writes_nothing_twice(platform, records, stores, until):
    first = await platform.start(instance="persister-1", env={"HEARTH_SEGMENT_AGE_S": "1"})
    await until(lambda: first.said("writing"))
    second = await platform.start(instance="persister-2")
    publishing = asyncio.create_task(records.many(1500, at_once=2))
    await until(lambda: len(stores.jobs()) > 50)

    first.freeze()
    await until(lambda: second.said("writing"), timeout_s=20)
    await until(lambda: len(stores.jobs()) > 500)
    first.thaw()
    await publishing

    await stores.complete(records=records)


async def test_two_that_both_believe_to_be_the_one_still_write_each_record_once(platform, records, stores, bus, until):
    """The lease is only for efficiency: with a lease each (other stores' names), on one folder, the chain decides."""
    platform.folder.joinpath("store-b").symlink_to(platform.store("a"))
    platform.store("a").mkdir()
    await platform.start("a", instance="persister-1")
    await platform.start("b", instance="persister-2")
    await records.many(3000, at_once=8)

    await stores.complete("a", "b", records=records)
    assert len(stores.jobs("a")) == 3000


async def test_a_second_final_after_the_first_has_left_the_broker_changes_nothing(platform, records, stores, bus):
    await platform.start("a", "b")
    first = await records.one()
    await stores.complete("a", "b", records=records)
    await bus.purge("RECORDS")
    late, body = records.make(job=first.record.job, result=b'"another"')

    await records.publish(late, body, msg_id="a late attempt")
    await records.one()

    await stores.complete("a", "b", records=records)
    found = {record.job: record for record in reading.read(platform.store("a"))}
    assert found[first.record.job].result == b'"hello ada"'


async def test_a_store_that_was_lost_is_filled_again_from_what_the_broker_holds(platform, records, stores, until):
    process = await platform.start("a", "b")
    await records.many(700)
    await records.many(10, persist=False)
    await stores.complete("a", "b", records=records)
    await process.stop()
    shutil.rmtree(platform.store("b"))

    await platform.start("a", "b")

    await until(lambda: len(stores.jobs("b")) == 700)
    stores.check("a", "b", records=records)


async def test_an_index_that_was_lost_is_made_anew_from_the_store(platform, records, stores, bus, until):
    process = await platform.start()
    await records.many(500)
    await stores.complete(records=records)
    await process.stop()
    shutil.rmtree(platform.folder / "data")
    await bus.purge("RECORDS")

    await platform.start()
    await records.many(5)

    await stores.complete(records=records)


@pytest.mark.parametrize("damage", ["cut short", "empty", "one bit"])
async def test_a_last_segment_that_was_damaged_is_written_anew_from_the_broker(platform, records, stores, until, damage):
    process = await platform.start(env={"HEARTH_SEGMENT_RECORDS_MAX": "50"})
    await records.many(200)
    await stores.complete(records=records)
    await process.stop()
    last = max((platform.store("local") / "segments").rglob("*.seg"))
    content = bytearray(last.read_bytes())
    if damage == "one bit":
        content[-60] ^= 1  # in the directory
    last.write_bytes(bytes(content[: len(content) // 2 if damage == "cut short" else 0 if damage == "empty" else None]))
    shutil.rmtree(platform.folder / "data")

    await platform.start()

    def mended() -> bool:
        found = reading.inspect(platform.store("local"))
        return found.clean and found.records == 200

    await until(mended)
    stores.check(records=records)
    assert len(list((platform.store("local") / "unreadable").rglob("*.seg"))) == 1


async def test_a_record_stream_that_was_made_anew_starts_a_new_chain(own, until):
    """Sequences begin at 1 again: nothing new may be taken for something old."""
    await own.platform.start()
    await own.records.many(200)
    await own.stores.complete(records=own.records)
    await own.bus._api_call("STREAM.DELETE.RECORDS", {})
    await own.bus.ensure_stream(streams.RECORDS)

    await own.records.many(50)

    await until(lambda: len(set(own.stores.jobs())) == 250)
    own.stores.check(records=own.records)


async def test_a_record_stream_that_went_back_in_time_starts_a_new_chain(own, until):
    """After a restore from an older backup the same stream has other messages under sequences that were stored."""
    await own.records.many(100)
    own.broker.stop()
    shutil.copytree(own.broker.folder / "js", own.broker.folder / "backup")
    own.broker.start()
    await provision(own.bus)
    process = await own.platform.start()
    await own.records.many(100)
    await own.stores.complete(records=own.records)
    await process.stop()
    own.broker.stop()
    shutil.rmtree(own.broker.folder / "js")
    shutil.move(own.broker.folder / "backup", own.broker.folder / "js")
    own.broker.start()
    await provision(own.bus)
    await own.records.many(150)

    await own.platform.start()

    await until(lambda: len(set(own.stores.jobs())) == 350)
    own.stores.check(records=own.records)


async def test_a_killed_broker_is_followed_and_nothing_is_lost(own, until):
    await own.platform.start("a", "b")
    await own.records.many(500)
    await until(lambda: len(own.stores.jobs("a")) > 50)
    own.broker.kill()
    own.broker.start()
    await provision(own.bus)  # leases live in memory; the scheduler makes that stream again
    await own.records.many(500)
    await own.stores.complete("a", "b", records=own.records)
