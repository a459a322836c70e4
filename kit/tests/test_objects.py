"""Large objects on the real broker. What an object is, is told in `test_bus_suite.py`."""

import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from hearth_contracts import subjects
from hearth_kit import errors
from hearth_kit.objects import WINDOW_CHUNKS, ObjectMissing, Objects

pytestmark = pytest.mark.broker

MIB = 1024 * 1024


async def test_64_mib_pass_through_in_flat_memory(bus, broker):
    program = Path(__file__).with_name("object_mover.py")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, program, broker.url, str(64 * MIB)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    read, put_mb, get_mb = map(float, done.stdout.split())
    assert read == 64 * MIB
    assert put_mb < 16
    assert get_mb < 16


async def test_reading_asks_ahead_and_no_further_than_its_window(bus, monkeypatch):
    objects = Objects(bus)
    data = bytes(4 * MIB) + b"end"
    meta = await objects.put("bodies", "o", data)
    assert meta.sha256 == hashlib.sha256(data).hexdigest()
    asked, get_last = [], bus.get_last

    async def counted(stream, subject):
        asked.append(subject)
        return await get_last(stream, subject)

    monkeypatch.setattr(bus, "get_last", counted)
    reading = objects.read("bodies", "o")
    async for _ in reading:
        break
    await asyncio.sleep(0.1)
    assert len(asked) == 1 + WINDOW_CHUNKS  # its description, and the window
    await reading.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "object-get"]


async def test_an_object_written_again_right_after_its_removal_is_there(bus):
    """The broker remembers ids of messages for a while; a second writing is no repetition of the first."""
    objects = Objects(bus)
    for body in (b"first", b"second"):
        await objects.put("bodies", "o", body)
        assert await objects.get("bodies", "o") == body
        await objects.delete("bodies", "o")


async def test_an_object_removed_while_it_is_read_is_missing(bus):
    objects = Objects(bus)
    await objects.put("bodies", "o", bytes(8 * MIB))
    with pytest.raises(ObjectMissing):
        async for _ in objects.read("bodies", "o"):
            await objects.delete("bodies", "o")


async def test_an_object_of_another_length_than_it_says_is_missing(bus):
    objects = Objects(bus)
    await objects.put("bodies", "o", bytes(MIB))
    await bus.publish(subjects.object_chunk("bodies", "o", 0), b"short")
    with pytest.raises(ObjectMissing, match="bytes of"):
        await objects.get("bodies", "o")


async def test_a_write_that_fails_says_so_and_leaves_nothing(bus, monkeypatch):
    objects = Objects(bus)
    publish = bus.publish

    async def full_after_three(subject, *arguments, **settings):
        if subject.endswith(".3"):
            raise errors.StreamFull
        return await publish(subject, *arguments, **settings)

    monkeypatch.setattr(bus, "publish", full_after_three)
    writer = objects.writer("bodies", "o", bytes_max=64 * MIB)
    with pytest.raises(errors.StreamFull):
        for _ in range(64):
            await writer.write(bytes(MIB))
    await writer.abandon()
    assert (await bus.stream_info("OBJECTS_BODIES")).messages == 0
