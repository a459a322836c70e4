"""A job ends however large, or how badly escaped, what is said of it would be."""

import logging

import pytest
from placing import TENANT, until

from hearth_contracts import bounds, names, subjects
from hearth_contracts.calls import OUTPUTS_MAX, Dead, HttpRequest
from hearth_contracts.enums import Lane, Reason, State
from hearth_executor.ports import Finished

pytestmark = pytest.mark.broker

FILLS = ("\x01", '"', "\U0001f600", "é\n", "\\", "a")


def _http(fill: str, bytes_max: int = bounds.HTTP_REQUEST_BYTES_MAX) -> HttpRequest:
    empty = HttpRequest(method="GET", path="/", query="", headers=())
    room = (bytes_max - bounds.http_bytes(empty) - 20) // 2
    filled = fill * (room // bounds.text_bytes(fill))
    http = HttpRequest(method="GET", path="/", query=filled, headers=(("x", filled),))
    assert bytes_max - 50 < bounds.http_bytes(http) <= bytes_max
    return http


def _fails(fill: str):
    async def fails(calling):
        return Finished("error", error_type=fill * 900, error_message=fill * 60000, traceback=fill * 60000)

    return fails


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("lane", [Lane.SYNC, Lane.ASYNC])
async def test_the_largest_failure_is_told_whole(start, caplog, fill, lane):
    """As an outcome, as a record, and as a copy for whoever looks into it."""
    caplog.set_level(logging.WARNING)
    async with start({"fails": _fails(fill)}) as it:
        first = it.call("fails", lane=lane, http=_http(fill))
        await it.place(first, is_last=False)
        outcome, _ = await it.outcome(first)
        assert outcome.ending.failure.traceback.endswith(fill)
        assert bounds.MARK in outcome.ending.failure.message
        last = it.call("fails", lane=lane, http=_http(fill))
        await it.place(last)
        record, _ = await it.record(last)
        assert (record.ending.reason, record.http) == (Reason.ERROR, last.http)
        assert bounds.MARK in record.ending.failure.traceback
        await it.settled()
        stored = await it.bus.get_last("DEAD", subjects.dead(TENANT, last.job))
        assert (stored is not None) is (lane is Lane.ASYNC)
        if stored is not None:
            assert stored.message.meta(Dead).call == last
    assert not [line for line in caplog.messages if "never fits" in line or "kept until" in line]


@pytest.mark.parametrize("fill", FILLS)
async def test_the_largest_success_is_told_whole(start, caplog, fill):
    async def writes(calling):
        for number in range(OUTPUTS_MAX):
            file = calling.events.output(f"{number:0{names.OUTPUT_BYTES_MAX}}", "c" * bounds.OUTPUT_TYPE_BYTES_MAX)
            await file.write(b"x")
            await file.finish()
        headers = (("x", fill * ((bounds.HTTP_HEADERS_BYTES_MAX - 11) // bounds.text_bytes(fill))),)
        return Finished(None, b"{}", content_type='"' * 128, http_status=200, http_headers=headers)

    async with start({"writes": writes}) as it:
        call = it.call("writes", http=_http(fill))
        await it.place(call)
        record, _ = await it.record(call)
        assert (record.ending.state, record.http, len(record.ending.outputs)) == (State.SUCCESS, call.http, OUTPUTS_MAX)
        assert record.ending.http_headers
        await it.settled()
    assert not [line for line in caplog.messages if "never fits" in line]


async def test_a_result_with_too_many_header_bytes_is_a_bad_one(start):
    async def shouts(calling):
        return Finished(None, b"", http_status=200, http_headers=(("x", '"' * 5000),))

    async with start({"shouts": shouts}) as it:
        call = it.call("shouts")
        await it.place(call)
        record, _ = await it.record(call)
        assert record.ending.reason is Reason.BAD_RESULT
        assert str(bounds.HTTP_HEADERS_BYTES_MAX) in record.ending.failure.message


async def test_output_names_that_do_not_fit_a_record_are_refused(start):
    refused = []

    async def writes(calling):
        for number in range(OUTPUTS_MAX):
            try:
                file = calling.events.output(f"{number}" + '"' * 190, "c" * 100)
            except Exception as error:
                refused.append(str(error))
                continue
            await file.write(b"x")
            await file.finish()
        return b""

    async with start({"writes": writes}) as it:
        call = it.call("writes", http=_http('"'))
        await it.place(call)
        record, _ = await it.record(call)
        assert record.ending.state is State.SUCCESS
        assert len(record.ending.outputs) + len(refused) == OUTPUTS_MAX
        assert "too long together" in refused[0]


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("lane", [Lane.SYNC, Lane.ASYNC])
@pytest.mark.parametrize("room", [40 * 1024, 64 * 1024 - 1100])
async def test_a_call_from_before_these_bounds_ends(start, caplog, lane, is_last, room):
    """It fits its run, but not what has to be said of it."""
    async with start({"fails": _fails('"')}) as it:
        call = it.call("fails", lane=lane, http=_http("a", room))
        await it.place(call, is_last=is_last)
        if not is_last and room == 40 * 1024:
            outcome, _ = await it.outcome(call)
            assert outcome.run.call == call
            assert bounds.text_bytes(outcome.ending.failure.traceback) <= bounds.STRIPPED_BYTES_MAX
        else:
            record, _ = await it.record(call)
            assert (record.ending.reason, record.http) == (Reason.ERROR, None)
            assert bounds.text_bytes(record.ending.failure.traceback) <= bounds.STRIPPED_BYTES_MAX
            if lane is Lane.SYNC:
                await it.reply(call)
        await it.settled()
        if is_last and lane is Lane.ASYNC:
            stored = await until(lambda: it.bus.get_last("DEAD", subjects.dead(TENANT, call.job)))
            assert stored.message.meta(Dead).call.http is None
    assert any("never fits" in line for line in caplog.messages)
