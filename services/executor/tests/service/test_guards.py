"""What each guard of the delivery is there for, where no other test would miss it."""

import pytest
from in_process import Calling
from placing import GATEWAY, TENANT, Running, until

from hearth_contracts import registry, subjects
from hearth_contracts.calls import Call, Dead, Ending, Record, Run
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_executor.ports import Finished
from hearth_kit import metrics, pump

pytestmark = pytest.mark.broker


async def echo(calling: Calling) -> bytes:
    return await calling.body()


async def bad(calling: Calling) -> Finished:
    return Finished("error", error_type="ValueError", error_message="no")


async def dead_letter(it: Running, call: Call) -> tuple[Dead, bytes] | None:
    stored = await it.bus.get_last("DEAD", subjects.dead(TENANT, call.job))
    return None if stored is None else (stored.message.meta(Dead), stored.message.body)


async def test_a_job_that_used_up_its_attempts_leaves_a_copy(start):
    async with start({"bad": bad}) as it:
        call = it.call("bad", b"in", lane=Lane.ASYNC, attempt=3)
        await it.place(call, b"in", is_last=True)
        record, _ = await it.record(call)
        await it.settled()
        dead, body = await until(lambda: dead_letter(it, call))
    assert (dead.call.job, dead.attempts, dead.ending, body) == (call.job, 3, record.ending, b"in")


@pytest.mark.parametrize(("lane", "reason"), [(Lane.SYNC, "error"), (Lane.ASYNC, "bad_result"), (Lane.ASYNC, None)])
async def test_nothing_else_does(start, lane, reason):
    """A caller that waits has heard; what another attempt could not mend was never tried again."""

    async def ends(calling: Calling) -> Finished:
        return Finished(reason, b"1")

    async with start({"ends": ends}) as it:
        call = it.call("ends", lane=lane)
        await it.place(call, is_last=True)
        await it.record(call)
        await it.settled()
        assert await dead_letter(it, call) is None


async def test_whoever_finds_the_record_of_a_run_that_was_not_settled_leaves_the_copy(start):
    """The executor recorded, and died before it could."""
    async with start({"bad": bad}) as it:
        call = it.call("bad", b"in", lane=Lane.ASYNC)
        ending = Ending(state=State.FAILED, reason=Reason.ERROR, attempt=1, executor="executor-2-00000000")
        final = Record(job=call.job, tenant=TENANT, function="bad", version=1, lane=call.lane, ending=ending)
        await it.bus.publish(subjects.record(TENANT, call.job), meta=final, contract="record.v1", expect_last=0)
        await it.place(call, b"in", placement=1, is_last=True)
        await it.settled()
        dead, body = await until(lambda: dead_letter(it, call))
    assert (dead.ending, body) == (ending, b"in")


async def test_each_placement_of_an_attempt_may_travel_back(start):
    """Were two hand-backs one message to the broker, the job would end in the second."""
    async with start({"echo": echo}, units_max=0) as it:
        call = it.call("echo", lane=Lane.ASYNC)
        for placement in range(2):
            await it.place(call, placement=placement, is_last=False)
            outcome, _ = await it.outcome(call)
            assert (outcome.kind, outcome.run.placement) == (OutcomeKind.REFUSED, placement)
            await it.settled()
            await it.bus.purge("OUTCOMES")


async def test_a_run_for_somebody_else_is_not_run(start):
    """Whatever put it here: two would run it."""
    async with start({"echo": echo}) as it:
        call = it.call("echo", lane=Lane.ASYNC)
        run = Run(call=call, executor="executor-2-ffffffff", placement=0, epoch=1, is_last=True, placed_at=0, reason="free")
        await it.bus.publish(subjects.run(it.id, call.job, sync=False), b"{}", meta=run, contract=registry.RUN.label)
        await it.settled()
        assert await it.stored_record(call) is None
        assert not it.backend.made


async def test_a_reply_that_went_with_the_connection_is_said_again(start, own_bus, monkeypatch):
    """It was written into a connection that nobody read any more; the record was made on the next one."""
    send, publish = own_bus.send, own_bus.publish
    lost: list[str] = []

    def lose(subject: str, *arguments, **options) -> None:
        if ".replies." in subject and not lost:
            lost.append(subject)
            return
        send(subject, *arguments, **options)

    async def after_a_reconnect(subject: str, *arguments, **options):
        if ".records." in subject and not own_bus.reconnects:
            await own_bus._wire.force_reconnect()
            await until(lambda: own_bus.reconnects and own_bus.connected)
        return await publish(subject, *arguments, **options)

    async with start({"echo": echo}, ack_wait_s=1) as it:
        monkeypatch.setattr(own_bus, "send", lose)
        monkeypatch.setattr(own_bus, "publish", after_a_reconnect)
        call = it.call("echo", b"1")
        await it.place(call, b"1")
        reply, body = await it.reply(call)
        record, _ = await it.record(call)
        await it.settled()
    assert lost == [subjects.reply(GATEWAY, call.job)]
    assert (reply.ending, body) == (record.ending, b"1")


@pytest.mark.parametrize("round_", range(3))
async def test_a_consumer_that_is_stuck_is_asked_again_and_its_job_ends(start, own_bus, monkeypatch, round_):
    """PROMISES 32: a run waits, and the request for it is gone; nobody would ever say so."""
    monkeypatch.setattr(pump, "HEARTBEAT_S", 0.2)
    send = own_bus._wire.send
    lost: list[str] = []

    def lossy(subject: str, *arguments) -> None:
        if not lost and "MSG.NEXT.RUNS." in subject:
            lost.append(subject)
            return
        send(subject, *arguments)

    monkeypatch.setattr(own_bus._wire, "send", lossy)
    before = metrics.REBINDS._value.get()
    async with start({"echo": echo}) as it:
        call = it.call("echo", b"1", lane=Lane.ASYNC)
        await it.place(call, b"1")
        record, content = await it.record(call, within_s=15)
        await it.settled()
    assert lost
    assert record.parts(content)[1] == b"1"
    assert metrics.REBINDS._value.get() == before + 1


async def test_a_dispatch_that_has_ended_here_is_answered_from_its_record_and_not_run_again(start):
    runs: list[bytes] = []

    async def counted(calling: Calling) -> bytes:
        runs.append(await calling.body())
        return b"%d" % len(runs)

    async with start({"counted": counted}) as it:
        call = it.call("counted")
        await it.place(call)
        await it.record(call)
        await it.settled()
        await it.place(call, msg_id="the-same-once-more")
        await until(lambda: len(it.replies) == 2 or None)
        await it.settled()
        first, again = it.replies
        assert first[1] == again[1] == b"1"
        assert (again[0].ending.attempt, again[0].ending.placement) == (1, 0)
        # Its record may have left for the stores: it is not run again then either.
        await it.bus.purge("RECORDS")
        await it.place(call, msg_id="and-again")
        await it.settled()
        assert await it.stored_record(call) is None
        # An async job has nobody who waits.
        job = it.call("counted", lane=Lane.ASYNC)
        await it.place(job)
        await it.record(job)
        await it.settled()
        await it.place(job, msg_id="the-same-job-once-more")
        await it.settled()
    assert len(it.replies) == 2
    assert len(runs) == 2
