"""Questions about what has left the broker are answered from the stores."""

import asyncio
import json
import shutil

import pytest

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import ArchiveQuery, Record
from hearth_contracts.enums import State
from hearth_kit.bus import contract_headers
from hearth_kit.objects import Objects

pytestmark = pytest.mark.broker


async def ask(bus, **words):
    query = ArchiveQuery(**{"tenant": "default", **words})
    headers = contract_headers(meta=query, contract="archive.v1", msg_id="", traceparent="", expect_last=None, headers=None)
    return await bus.request(subjects.ARCHIVE, headers=headers, timeout_s=10)


async def test_a_job_is_found_by_its_tenant_alone_after_it_has_left_the_broker(platform, records, stores, bus):
    await platform.start()
    published = await records.one(log=b"line\n", state=State.FAILED)
    await records.many(30)
    await stores.complete(records=records)
    await bus.purge("RECORDS")

    found = await ask(bus, job=published.record.job)

    assert found.meta(Record) == published.record
    assert found.body == published.body
    assert found.headers["Hearth-Contract"] == "record.v1"
    for other in (
        {"job": published.record.job, "tenant": "acme"},
        {"job": names.new_job("hello", 1.0)},
        {"job": "../../etc/passwd"},
        {"job": "x" * 1025},
    ):
        missing = await ask(bus, **other)
        assert missing.headers["Hearth-Missing"] == "1"
        assert missing.body == b""


async def test_a_page_of_history_has_the_words_of_each_job(platform, records, stores, bus):
    await platform.start()
    for number in range(25):
        await records.one(
            at=1000.0 + number, function="odd" if number % 2 else "even",
            state=State.FAILED if number % 5 == 0 else State.SUCCESS,
        )  # fmt: skip
    await stores.complete(records=records)
    newest = sorted(records.published.values(), key=lambda one: -one.record.ending.timings.submitted_at)

    page = json.loads((await ask(bus, limit=10)).body)
    rest = json.loads((await ask(bus, limit=1000, cursor=page["next"])).body)

    assert [job["job"] for job in page["jobs"] + rest["jobs"]] == [one.record.job for one in newest]
    assert rest["next"] == ""
    first = page["jobs"][0]
    assert {key: first[key] for key in ("function", "version", "state", "reason", "start", "submitted_at", "wall_ms")} == {
        "function": "even", "version": 1, "state": "SUCCESS", "reason": "", "start": "warm", "submitted_at": 1024.0,
        "wall_ms": 1.5,
    }  # fmt: skip
    failed = json.loads((await ask(bus, state="FAILED", function="odd")).body)["jobs"]
    assert [job["submitted_at"] for job in failed] == [1015.0, 1005.0]
    assert {job["reason"] for job in failed} == {"error"}
    assert json.loads((await ask(bus, tenant="acme")).body) == {"jobs": [], "next": ""}


async def test_the_longest_page_fits_a_message(platform, records, stores, bus):
    await platform.start()
    await records.many(1000, function="f" * 63, tenant="t" * 63)
    await stores.complete(records=records)

    answer = await ask(bus, tenant="t" * 63, limit=100_000)

    assert len(json.loads(answer.body)["jobs"]) == 1000
    assert len(answer.body) < 600_000


async def test_a_large_result_becomes_an_object_again_when_it_is_asked_for(platform, records, stores, bus, until):
    await platform.start()
    published, content = await records.large(2_500_000)
    await stores.complete(records=records)
    await bus.purge("RECORDS")
    await bus.purge(streams.OBJECTS_BODIES.name)
    objects = Objects(bus)
    name = published.record.ending.result.object
    assert await objects.head("bodies", name) is None

    async def back() -> bool:
        answers = await asyncio.gather(*(ask(bus, job=published.record.job) for _ in range(5)))
        assert all(answer.meta(Record) == published.record for answer in answers)
        return await objects.head("bodies", name) is not None

    await until(back)  # within a second of its first writing the broker takes it for a repetition
    assert await objects.get("bodies", name) == content


async def test_one_store_away_the_other_answers(platform, records, stores, bus):
    await platform.start("a", "b")
    await records.many(20)
    await stores.complete("a", "b", records=records)
    await bus.purge("RECORDS")
    shutil.move(platform.store("a") / "segments", platform.store("a") / "gone")

    for job in list(records.published)[:5]:
        assert (await ask(bus, job=job)).meta(Record).job == job


def flip(path):
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF  # within the first block
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", ["a byte of its block", "no folder"])
async def test_a_record_that_cannot_be_read_is_not_missing(platform, records, stores, bus, damage):
    await platform.start("a", "b")
    await records.many(20)
    await stores.complete("a", "b", records=records)
    await bus.purge("RECORDS")
    job = next(iter(records.published))

    def spoil(name):
        if damage == "no folder":
            shutil.move(platform.store(name) / "segments", platform.store(name) / "gone")
        else:
            for path in (platform.store(name) / "segments").rglob("*.seg"):
                flip(path)

    spoil("a")
    assert (await ask(bus, job=job)).meta(Record).job == job  # the other store has it
    spoil("b")
    answer = await ask(bus, job=job)
    assert "Hearth-Missing" not in answer.headers
    assert answer.headers["Hearth-Error"] == "E_STORE_UNREADABLE"
    assert "a: " in json.loads(answer.body)["error"]
    assert "b: " in json.loads(answer.body)["error"]
    # What no store has a place for is missing all the same.
    assert (await ask(bus, job=names.new_job("hello", 1.0))).headers["Hearth-Missing"] == "1"


async def test_a_store_that_is_away_while_another_has_no_place_for_it_proves_nothing(platform, records, stores, bus, until):
    """One store was added later, and the one that has the old records is away."""
    process = await platform.start("a")
    published = await records.one()
    await stores.complete("a", records=records)
    await process.stop()
    await bus.purge("RECORDS")
    shutil.rmtree(platform.store("a") / "segments")
    (platform.store("a") / "segments").write_text("no folder")
    process = await platform.start("a", "b")
    await until(lambda: process.said("store fails"))

    answer = await ask(bus, job=published.record.job)

    assert answer.headers.get("Hearth-Error") == "E_STORE_UNREADABLE", answer.headers


async def test_a_standby_answers_too(platform, records, stores, bus, until):
    writing = await platform.start(instance="persister-1")
    await until(lambda: writing.said("writing"))
    await platform.start(instance="persister-2")
    await records.many(20)
    await stores.complete(records=records)
    writing.freeze()

    async def answered() -> bool:
        # The broker still gives half of the questions to the one that is stopped.
        asked = [asyncio.create_task(ask(bus, job=job)) for job in records.published]
        done, late = await asyncio.wait(asked, timeout=0.5)
        for task in late:
            task.cancel()
        return bool(done) and all("Hearth-Missing" not in task.result().headers for task in done)

    await until(answered)
    writing.thaw()


@pytest.mark.parametrize("words", [{"cursor": "nonsense"}, {"cursor": "x~y"}])
async def test_a_question_that_cannot_be_read_is_answered_and_stops_nothing(platform, records, stores, bus, words):
    await platform.start()
    await records.one()
    await stores.complete(records=records)
    answer = await ask(bus, **words)
    assert answer.headers["Hearth-Error"] == "E_BAD_QUERY"
    empty = await bus.request(subjects.ARCHIVE, b"what?", timeout_s=10)
    assert empty.headers["Hearth-Error"] == "E_BAD_QUERY"
    assert "Hearth-Missing" not in empty.headers
    assert len(json.loads((await ask(bus)).body)["jobs"]) == 1
