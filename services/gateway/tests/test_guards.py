"""What each guard of custody is there for, where no other test would miss it."""

import asyncio

import pytest

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Body, Call, Ending, Record, Reply
from hearth_contracts.enums import Reason, State
from hearth_gateway.calls.custody import Custody
from hearth_kit.nats_bus import NatsBus

pytestmark = pytest.mark.broker


async def held_call(gateway, eventually) -> tuple[asyncio.Future, Call]:
    gateway.double.placed = False
    await gateway.deploy()
    waiting = asyncio.ensure_future(gateway.invoke())
    await eventually(lambda: gateway.double.calls)
    return waiting, gateway.double.calls[0]


async def reply(gateway, call: Call, result: bytes) -> None:
    said = Reply(job=call.job, ending=Ending(state=State.SUCCESS, result=Body(size=len(result))))
    await gateway.bus.publish(subjects.reply("gateway-1", call.job), result, meta=said, contract="reply.v1")


async def test_a_reply_that_comes_while_a_cancel_is_recorded_is_not_told(gateway, eventually, monkeypatch):
    """Else the caller would know an answer, and the record would say that there was none."""
    waiting, call = await held_call(gateway, eventually)
    publish = NatsBus.publish

    async def slow(self, subject, *arguments, **options):
        if self.instance == "gateway-1" and subject == subjects.record(call.tenant, call.job):
            await reply(gateway, call, b'"told"')
            await asyncio.sleep(0.2)  # it has been heard by now
        return await publish(self, subject, *arguments, **options)

    monkeypatch.setattr(NatsBus, "publish", slow)
    assert (await gateway.call("DELETE", f"/v1/jobs/{call.job}"))[0] == 200
    status, body, _ = await asyncio.wait_for(waiting, 5)
    assert (status, body["code"]) == (409, "E_CANCELLED")
    stored = await gateway.bus.get_last(streams.RECORDS.name, subjects.record(call.tenant, call.job))
    assert stored.message.meta(Record).ending.reason is Reason.CANCELLED


async def test_a_reply_that_was_missed_with_the_connection_is_found_before_the_call_is_published_again(
    broker, bus, make_gateway, tmp_path, eventually, monkeypatch
):
    held_by: list[Custody] = []
    start = Custody.start

    async def remembered(self):
        held_by.append(self)
        await start(self)

    monkeypatch.setattr(Custody, "start", remembered)
    async with make_gateway(broker, bus, tmp_path) as gateway:
        waiting, call = await held_call(gateway, eventually)
        held = held_by[0].held(call.job)
        held.frozen = True  # deaf, as in the moment in which a connection is lost
        await reply(gateway, call, b'"missed"')
        await asyncio.sleep(0.1)
        held.frozen = False
        await held_by[0]._bus._wire.force_reconnect()
        status, body, _ = await asyncio.wait_for(waiting, 5)
        assert (status, body) == (200, "missed")
        assert [again.placement for again in gateway.double.calls] == [0]
