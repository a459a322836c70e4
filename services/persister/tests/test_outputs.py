"""Output files go along with their record: into every store, byte by byte, and back when somebody asks for one."""

import hashlib
import os

import pytest

from hearth_contracts import streams, subjects
from hearth_contracts.calls import ArchiveQuery, Output, Record
from hearth_kit.bus import contract_headers
from hearth_kit.objects import Objects
from hearth_persister import reading

pytestmark = pytest.mark.broker

#: Names that people chose. None of them may reach a key.
CONTENTS = {"frames.bin": os.urandom(2_500_000), "a ü?.txt": b"text", "empty": b""}


@pytest.fixture
async def wrote(records, bus):
    """A record whose call wrote files."""

    async def publish(contents=CONTENTS, *, there=True):
        record, body = records.make()
        files = []
        for number, (name, content) in enumerate(contents.items(), 1):
            object_id = f"{record.job}-1-0-out-{number}"
            if there:
                await Objects(bus).put("bodies", object_id, content)
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(Output(name=name, size=len(content), sha256=sha256, object=object_id))
        ending = record.ending.model_copy(update={"outputs": tuple(files)})
        return await records.publish(record.model_copy(update={"ending": ending}), body)

    return publish


async def asked(bus, published, output: str = ""):
    query = ArchiveQuery(tenant="default", job=published.record.job, output=output)
    headers = contract_headers(meta=query, contract="archive.v1", msg_id="", traceparent="", expect_last=None, headers=None)
    return await bus.request(subjects.ARCHIVE, headers=headers, timeout_s=10)


async def test_every_store_holds_every_file_under_keys_of_ours(platform, wrote, records, stores):
    await platform.start("a", "b")
    published = await wrote()

    await stores.complete("a", "b", records=records)

    for name in ("a", "b"):
        (found,) = reading.read(platform.store(name))
        assert found.meta == published.record
        assert {file: b"".join(found.chunks(part)) for file, part in found.outputs.items()} == CONTENTS
        keys = sorted(body.key.rpartition("/")[2] for body in found.row.objects)
        assert keys == [f"{published.record.job}.output-{number}" for number in (1, 2, 3)]
        assert reading.inspect(platform.store(name)).clean
    files = [
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (platform.store("a"), platform.store("b"))
    ]
    assert files[0] == files[1]


async def test_a_file_that_is_damaged_or_missing_in_a_store_is_found(platform, wrote, records, stores):
    await platform.start()
    await wrote({"a": b"x" * 300_000})
    await stores.complete(records=records)
    (found,) = reading.read(platform.store("local"))
    (body,) = found.row.objects
    path = platform.store("local") / body.key
    path.chmod(0o600)
    path.write_bytes(b"y" * 300_000)
    assert reading.inspect(platform.store("local")).corrupt == [body.key]
    path.unlink()
    assert reading.inspect(platform.store("local")).missing == [body.key]


async def test_one_file_becomes_an_object_again_when_it_is_asked_for_and_the_others_do_not(platform, wrote, records, stores, bus):
    await platform.start()
    published = await wrote()
    await stores.complete(records=records)
    await bus.purge("RECORDS")
    await bus.purge(streams.OBJECTS_BODIES.name)
    objects = Objects(bus)
    first, second, third = (file.object for file in published.record.ending.outputs)

    assert (await asked(bus, published)).meta(Record) == published.record
    assert [await objects.head("bodies", one) for one in (first, second, third)] == [None] * 3
    assert (await asked(bus, published, first)).meta(Record) == published.record
    assert await objects.get("bodies", first) == CONTENTS["frames.bin"]
    assert await objects.head("bodies", second) is None
    await asked(bus, published, third)
    assert await objects.get("bodies", third) == b""
    # Nobody else's object can be asked for in this way.
    assert (await asked(bus, published, "another-1-0-out-1")).meta(Record) == published.record


async def test_files_that_had_left_the_broker_do_not_hold_up_their_record(platform, wrote, records, stores, until):
    lost = await wrote({"a": b"x"}, there=False)
    kept = await records.one()
    await platform.start()

    async def settled() -> bool:
        return await stores.settled() >= kept.sequence

    await until(settled)
    found = {record.job: record for record in reading.read(platform.store("local"))}
    body = found[lost.record.job].stored_body("output-1")
    assert body is not None
    assert body.missing
