"""Output files of a run: in objects of their own while they are written, listed by the record, gone with a failure."""

import asyncio
import hashlib

import pytest
from in_process import Calling
from placing import until

from hearth_contracts import names
from hearth_contracts.calls import OUTPUTS_MAX
from hearth_contracts.enums import Lane, Reason, State
from hearth_executor.errors import OutputRefused, OutputTooLarge
from hearth_executor.ports import Finished
from hearth_kit.objects import Objects

pytestmark = pytest.mark.broker


async def wrote(calling: Calling, name: str, content: bytes, content_type: str = "", *, end: bool = True) -> None:
    assert calling.events.output is not None
    file = calling.events.output(name, content_type)
    for at in range(0, len(content), 65536):
        await file.write(content[at : at + 65536])
    if end:
        await file.finish()


async def test_a_record_lists_the_files_in_the_order_they_were_opened(start, bus):
    content = bytes(range(256)) * 4096

    async def writes(calling: Calling) -> bytes:
        await wrote(calling, "z.bin", content)
        await wrote(calling, "a ü.csv", b"", "text/csv")
        return b"1"

    async with start({"writes": writes}) as it:
        await it.place(call := it.call("writes"))
        reply, _ = await it.reply(call)
        record, _ = await it.record(call)
        await it.settled()
    assert reply.ending.outputs == record.ending.outputs
    first, second = record.ending.outputs
    assert (first.name, first.size, first.sha256) == ("z.bin", len(content), hashlib.sha256(content).hexdigest())
    assert (second.name, second.size, second.content_type) == ("a ü.csv", 0, "text/csv")
    assert second.sha256 == hashlib.sha256(b"").hexdigest()
    assert await Objects(bus).get("bodies", first.object) == content
    assert await Objects(bus).get("bodies", second.object) == b""


@pytest.mark.parametrize("lane", list(Lane))
async def test_a_failed_attempt_lists_nothing_and_leaves_no_object(start, lane):
    async def writes(calling: Calling) -> Finished:
        await wrote(calling, "whole", b"x" * 300_000)
        await wrote(calling, "begun", b"x" * 600_000, end=False)
        return Finished("error", error_type="ValueError", error_message="no")

    async with start({"writes": writes}) as it:
        await it.place(call := it.call("writes", lane=lane))
        record, _ = await it.record(call)
        await it.settled()
        assert (record.ending.state, record.ending.outputs) == (State.FAILED, ())
        assert await it.left("OBJECTS_BODIES") == 0


async def test_a_cancel_in_the_middle_lists_nothing_and_leaves_no_object(start):
    writing = asyncio.Event()

    async def writes(calling: Calling) -> bytes:
        await wrote(calling, "whole", b"x" * 300_000)
        await wrote(calling, "begun", b"x" * 600_000, end=False)
        writing.set()
        await asyncio.Event().wait()
        return b""

    async with start({"writes": writes}) as it:
        await it.place(call := it.call("writes", lane=Lane.ASYNC))
        await asyncio.wait_for(writing.wait(), 10)
        assert await it.left("OBJECTS_BODIES") > 0
        await it.control("cancel", call.job)
        record, _ = await it.record(call)
        await it.settled()
        assert (record.ending.reason, record.ending.outputs) == (Reason.CANCELLED, ())
        await until(lambda: _none_left(it))


async def _none_left(it) -> bool:
    return not await it.left("OBJECTS_BODIES")


async def test_a_file_that_is_not_whole_is_not_kept(start, bus):
    async def writes(calling: Calling) -> bytes:
        await wrote(calling, "begun", b"x" * 600_000, end=False)
        await wrote(calling, "whole", b"y")
        return b"1"

    async with start({"writes": writes}) as it:
        await it.place(call := it.call("writes"))
        record, _ = await it.record(call)
        await it.settled()
        assert [file.name for file in record.ending.outputs] == ["whole"]
        assert await it.left("OBJECTS_BODIES") == 2  # the other's one chunk and its end


async def test_a_calls_files_together_stay_within_their_limit_and_the_call_goes_on(start):
    async def writes(calling: Calling) -> bytes:
        await wrote(calling, "one", b"x" * 600_000)
        with pytest.raises(OutputTooLarge):
            await wrote(calling, "two", b"x" * 600_000)
        await wrote(calling, "three", b"x" * 1000)
        return b"1"

    async with start({"writes": writes}, output_bytes_max=1_000_000) as it:
        await it.place(call := it.call("writes"))
        record, _ = await it.record(call)
        await it.settled()
    assert record.ending.state is State.SUCCESS
    assert [file.name for file in record.ending.outputs] == ["one", "three"]


async def test_a_limit_is_for_one_call_and_not_for_all(start):
    async def writes(calling: Calling) -> bytes:
        await wrote(calling, "one", b"x" * 600_000)
        return b"1"

    async with start({"writes": writes}, output_bytes_max=1_000_000) as it:
        for _ in range(3):
            await it.place(call := it.call("writes"))
            assert len((await it.record(call))[0].ending.outputs) == 1
        await it.settled()


async def test_names_and_numbers_of_files_are_refused_with_their_reason(start):
    said: list[str] = []
    hostile = ["", ".", "..", "a/b", "/etc/passwd", "..\\x", "a\0b", "a\nb", "a\x7f", "\u202egnp.exe", "x" * 201, "é" * 101]

    async def writes(calling: Calling) -> bytes:
        assert calling.events.output is not None
        for name in hostile:
            with pytest.raises(OutputRefused) as refused:
                calling.events.output(name, "")
            said.append(str(refused.value))
        for number in range(OUTPUTS_MAX):
            await wrote(calling, f"file-{number}", b"1")
        for name in ("file-1", "one-more"):
            with pytest.raises(OutputRefused) as refused:
                calling.events.output(name, "")
            said.append(str(refused.value))
        return b"1"

    async with start({"writes": writes}) as it:
        await it.place(call := it.call("writes"))
        record, _ = await it.record(call)
        await it.settled()
    assert len(record.ending.outputs) == OUTPUTS_MAX
    assert len(said) == len(hostile) + 2
    assert "at most 200 bytes" in said[-3]
    assert "has a file of that name already" in said[-2]
    assert f"a call may have {OUTPUTS_MAX} output files" in said[-1]
    for file in record.ending.outputs:
        names.token("object", file.object)


async def test_a_content_type_that_could_not_stand_in_a_header_is_dropped(start):
    async def writes(calling: Calling) -> bytes:
        await wrote(calling, "a", b"", "text/plain\r\nset-cookie: x=y")
        await wrote(calling, "b", b"", "x" * 300)
        return b"1"

    async with start({"writes": writes}) as it:
        await it.place(call := it.call("writes"))
        record, _ = await it.record(call)
        await it.settled()
    assert [file.content_type for file in record.ending.outputs] == ["", ""]
