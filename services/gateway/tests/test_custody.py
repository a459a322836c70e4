"""The rules of custody: what was told to a caller is what is recorded, through lost replies, moves and broker restarts."""

import asyncio

import pytest
from platform_double import Outcome, headers_of

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Body, Call, Ending, Moved, MovedAnswer, Record, Reply, StateChange
from hearth_contracts.enums import State
from hearth_kit.nats_bus import connect
from hearth_kit.provision import provision, remake_memory

pytestmark = pytest.mark.broker


def ending(call: Call, *, attempt: int = 1, placement: int = 0, size: int = 0) -> Ending:
    return Ending(state=State.SUCCESS, result=Body(size=size), attempt=attempt, placement=placement)


async def reply(gateway, call: Call, result: bytes, **dispatch) -> None:
    said = Reply(job=call.job, ending=ending(call, size=len(result), **dispatch))
    await gateway.bus.publish(subjects.reply("gateway-1", call.job), result, meta=said, contract="reply.v1")


async def record(gateway, call: Call, result: bytes) -> None:
    kept = Record(
        job=call.job, tenant=call.tenant, function=call.function, version=1, lane=call.lane,
        ending=ending(call, size=len(result)), input=Body(size=0), log=Body(size=0),
    )  # fmt: skip
    await gateway.bus.publish(subjects.record(call.tenant, call.job), result, meta=kept, contract="record.v1", expect_last=0)


async def ask_moved(gateway, job: str, attempt: int, placement: int) -> MovedAnswer:
    moved = Moved(job=job, attempt=attempt, placement=placement)
    message = await gateway.bus.request(subjects.moved("gateway-1"), headers=headers_of(moved, "moved.v1"))
    return message.meta(MovedAnswer)


async def held_call(gateway, eventually) -> tuple[asyncio.Future, Call]:
    gateway.double.placed = False
    await gateway.deploy()
    waiting = asyncio.ensure_future(gateway.invoke())
    await eventually(lambda: gateway.double.calls)
    return waiting, gateway.double.calls[0]


async def test_once_moved_no_reply_of_an_earlier_dispatch_is_taken(gateway, eventually):
    waiting, call = await held_call(gateway, eventually)
    assert await ask_moved(gateway, call.job, 1, 1) == MovedAnswer(held=True, answered=False)
    await reply(gateway, call, b'"old"')  # the dispatch that was thought dead speaks after all
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await reply(gateway, call, b'"new"', placement=1)
    assert (await waiting)[1] == "new"


async def test_a_question_about_an_answered_call_says_so(gateway, eventually):
    waiting, call = await held_call(gateway, eventually)
    await reply(gateway, call, b'"a"')
    await waiting
    assert await ask_moved(gateway, call.job, 1, 1) == MovedAnswer(held=False, answered=True)
    assert await ask_moved(gateway, "hello-" + "0" * 26, 1, 1) == MovedAnswer(held=False, answered=False)


async def test_a_later_attempt_answers(gateway, eventually):
    waiting, call = await held_call(gateway, eventually)
    await reply(gateway, call, b'"second"', attempt=2)
    assert (await waiting)[1] == "second"


async def test_an_unreadable_reply_is_passed_over(gateway, eventually):
    waiting, call = await held_call(gateway, eventually)
    await gateway.bus.publish(subjects.reply("gateway-1", call.job), b"x", headers={"Hearth-Meta": "{nonsense"})
    await gateway.bus.publish(subjects.reply("gateway-1", call.job), b"x")
    await reply(gateway, call, b'"good"')
    assert (await waiting)[1] == "good"


async def test_a_call_whose_reply_was_lost_is_answered_from_its_record(gateway, eventually, monkeypatch):
    from hearth_gateway.calls import custody

    monkeypatch.setattr(custody, "LOOK_AFTER_S", 0.2)
    waiting, call = await held_call(gateway, eventually)
    await record(gateway, call, b'"kept"')
    assert (await asyncio.wait_for(waiting, 5))[1] == "kept"


async def test_a_call_that_lasts_is_visible_to_every_gateway(gateway, broker, bus, make_gateway, tmp_path, eventually):
    waiting, call = await held_call(gateway, eventually)
    async with make_gateway(broker, bus, tmp_path, instance="gateway-2") as second:

        async def seen():
            status, body, _ = await second.call("GET", f"/v1/jobs/{call.job}")
            return status == 200 and body["state"] == "PENDING"

        await eventually(seen)
        # And the other gateway may cancel it: the holder stops taking replies first.
        assert (await second.call("DELETE", f"/v1/jobs/{call.job}"))[0] == 200
        await reply(gateway, call, b'"too late"')
        status, body, _ = await asyncio.wait_for(waiting, 5)
        assert (status, body["code"]) == (409, "E_CANCELLED")


async def test_an_answered_call_is_not_cancelled_by_another_gateway(gateway, broker, bus, make_gateway, tmp_path, eventually):
    """Between reply and record the caller knows the answer already: CANCELLED may not become the record."""
    waiting, call = await held_call(gateway, eventually)
    async with make_gateway(broker, bus, tmp_path, instance="gateway-2") as second:

        async def seen():
            return (await second.call("GET", f"/v1/jobs/{call.job}"))[0] == 200

        await eventually(seen)
        await reply(gateway, call, b'"told"')
        assert (await waiting)[1] == "told"
        status, body, _ = await second.call("DELETE", f"/v1/jobs/{call.job}")
        assert (status, body["code"]) == (409, "E_JOB_FINISHED")
        await record(gateway, call, b'"told"')


async def test_sync_calls_pending_at_a_broker_restart_finish(own_broker, make_gateway, tmp_path, eventually):
    async with connect(url=own_broker.url, instance="test") as bus:
        await provision(bus)
        async with make_gateway(own_broker, bus, tmp_path / "g") as gateway:
            gateway.double.placed = False
            await gateway.deploy()
            waiting = [asyncio.ensure_future(gateway.invoke(data=b"[%d]" % n)) for n in range(20)]
            await eventually(lambda: len(gateway.double.calls) == 20)
            first = {call.job for call in gateway.double.calls}
            # One was recorded just before the crash, its reply lost with the broker.
            await record(gateway, gateway.double.calls[7], b'"recorded before"')
            own_broker.kill()
            own_broker.start()
            await eventually(lambda: bus.connected)
            await remake_memory(bus)
            gateway.double.placed = True
            gateway.double.calls.clear()
            await gateway.double.consume()
            answers = await asyncio.wait_for(asyncio.gather(*waiting), 30)
            assert {status for status, _, _ in answers} == {200}
            assert sorted(str(body) for _, body, _ in answers) == sorted(
                [f"[{n}]" for n in range(20) if n != 7] + ["recorded before"]
            )
            again = [call for call in gateway.double.calls if call.job in first]
            assert len(again) == 19
            assert {call.placement for call in again} == {1}  # another dispatch id, so that rule 2 holds
            # What callers were told is what is recorded.
            for _, body, headers in answers:
                _, shown, _ = await gateway.call("GET", f"/v1/jobs/{headers['x-hearth-job']}?wait=5")
                assert shown["result"] == body


async def test_no_broker_means_503_at_once_and_it_heals(own_broker, make_gateway, tmp_path, eventually):
    async with connect(url=own_broker.url, instance="test") as bus:
        await provision(bus)
        async with make_gateway(own_broker, bus, tmp_path / "g") as gateway:
            await gateway.deploy()
            own_broker.kill()

            async def refused():
                status, body, headers = await gateway.invoke()
                return status == 503 and body["code"] == "E_NO_BROKER" and headers["retry-after"]

            await eventually(refused)
            for path in ("/v1/jobs/hello-" + "0" * 26, "/v1/functions/other"):
                status, body, _ = await asyncio.wait_for(gateway.call("GET", path), 10)
                assert status == 503, body
            status, body, _ = await gateway.call("GET", "/readyz", key="-")
            assert status == 503
            assert "broker" in body["problems"]
            status, body, _ = await gateway.call("GET", "/v1/system")
            assert (status, body["broker"]["connected"]) == (200, False)
            own_broker.start()
            await eventually(lambda: bus.connected)
            await remake_memory(bus)
            await gateway.double.consume()

            async def healed():
                return (await gateway.invoke())[0] == 200

            await eventually(healed, 20)


async def test_a_gateway_that_stops_tells_its_callers_where_the_answer_will_be(broker, bus, make_gateway, tmp_path, eventually):
    go = asyncio.Event()

    async def work(call, body):
        await go.wait()
        return Outcome(b'"later"')

    async with make_gateway(broker, bus, tmp_path, drain_s_max=0.3) as gateway:
        gateway.double.work = work
        await gateway.deploy()
        waiting = asyncio.ensure_future(gateway.invoke())
        await eventually(lambda: gateway.double.calls)
        gateway.extra["stop"].set()
        status, body, headers = await asyncio.wait_for(waiting, 5)
        assert status == 202
        assert headers["location"] == f"/v1/jobs/{body['job']}"
        stored = await bus.get_last(streams.STATES.name, subjects.state("default", body["job"]))
        assert stored is not None


async def test_idempotent_jobs_publish_their_state_before_the_answer(gateway):
    await gateway.deploy()
    gateway.double.placed = False
    _, body, _ = await gateway.invoke(headers={"prefer": "respond-async"})
    stored = await gateway.bus.get_last(streams.STATES.name, subjects.state("default", body["job"]))
    assert stored is not None


async def test_the_function_queue_of_the_broker_is_a_429_and_its_full_store_a_503():
    from hearth_gateway.calls import refusals
    from hearth_kit.errors import NotConnected, PayloadTooLarge, PublishTimeout, StreamFull, StreamMissing

    for error, status, code in (
        (StreamFull("maximum messages per subject exceeded"), 429, "E_QUEUE_FULL"),
        (StreamFull("maximum bytes exceeded"), 503, "E_STORE_FULL"), (StreamFull("insufficient resources"), 503, "E_STORE_FULL"),
        (NotConnected(), 503, "E_NO_BROKER"), (PublishTimeout(), 503, "E_NO_BROKER"),
        (StreamMissing(), 503, "E_NO_BROKER"), (PayloadTooLarge(), 413, "E_TOO_LARGE"),
    ):  # fmt: skip
        problem = refusals.of_bus(error).problem
        assert (problem.status, problem.code) == (status, code)
        assert status == 413 or problem.retry_after_s


async def test_a_full_store_is_a_503_never_a_202_and_it_heals(own_broker, make_gateway, tmp_path, eventually):
    async with connect(url=own_broker.url, instance="test") as bus:
        await provision(bus)
        async with make_gateway(own_broker, bus, tmp_path / "g", streams_check_s=0.1) as gateway:
            await gateway.deploy()
            gateway.double.placed = False

            async def answers(status: int, code: str = "") -> bool:
                got, body, headers = await gateway.invoke(data=b"x" * 2000, headers={"prefer": "respond-async"})
                if got != status:
                    return False
                assert got == 202 or (body["code"] == code and headers["retry-after"])
                return True

            async def limit(stream, bytes_max: int) -> None:
                await bus._api_call(f"STREAM.UPDATE.{stream.name}", {**stream.config(), "max_bytes": bytes_max})

            await limit(streams.JOBS, 6000)
            await eventually(lambda: answers(503, "E_STORE_FULL"))
            held = (await bus.stream_info(streams.JOBS.name)).messages
            assert not await answers(202)
            assert (await bus.stream_info(streams.JOBS.name)).messages == held
            await limit(streams.JOBS, streams.JOBS.max_bytes)
            await eventually(lambda: answers(202))

            # Records nearly full: nothing new begins that could not be recorded.
            call = gateway.double.calls[0]
            await record(gateway, call, b"y" * 1000)
            await limit(streams.RECORDS, int((await bus.stream_info(streams.RECORDS.name)).bytes / 0.95))
            await eventually(lambda: answers(503, "E_STORE_FULL"))
            assert (await gateway.invoke())[0] == 503
            await limit(streams.RECORDS, streams.RECORDS.max_bytes)
            await eventually(lambda: answers(202))


async def test_a_pending_that_failed_is_tried_again_and_a_202_insists_on_it(own_broker, make_gateway, tmp_path, eventually):
    """No stream takes it for longer than one try."""
    async with connect(url=own_broker.url, instance="test") as bus:
        await provision(bus)
        async with make_gateway(own_broker, bus, tmp_path / "g", drain_s_max=0.2) as gateway:
            waiting, call = await held_call(gateway, eventually)
            await bus._api_call(f"STREAM.DELETE.{streams.STATES.name}", {})
            second = asyncio.ensure_future(gateway.invoke())
            await eventually(lambda: len(gateway.double.calls) == 2)
            other = gateway.double.calls[1]
            await asyncio.sleep(7)  # the first try has failed by then: VISIBLE_AFTER_S and one publish's time
            await provision(bus)

            async def shown(job: str):
                return await bus.get_last(streams.STATES.name, subjects.state("default", job))

            await eventually(lambda: shown(other.job))
            await reply(gateway, call, b"1")
            await reply(gateway, other, b"2")
            assert [(await one)[1] for one in (waiting, second)] == [1, 2]

            third = asyncio.ensure_future(gateway.invoke())
            await eventually(lambda: len(gateway.double.calls) == 3)
            await bus._api_call(f"STREAM.DELETE.{streams.STATES.name}", {})
            gateway.extra["stop"].set()
            status, body, headers = await asyncio.wait_for(third, 20)
            assert (status, body["code"]) == (503, "E_NO_BROKER")
            assert headers["retry-after"]


async def test_a_holder_that_does_not_answer_may_still_tell_its_caller(gateway, monkeypatch):
    """Only where nobody listens is there no holder any more."""
    from hearth_gateway.jobs import cancel

    monkeypatch.setattr(cancel, "ASK_S_MAX", 0.3)
    await gateway.deploy()
    gateway.double.placed = False
    _, body, _ = await gateway.invoke(headers={"prefer": "respond-async"})
    job = body["job"]
    said = StateChange(job=job, tenant="default", state=State.PENDING, attempt=1, phase=0, at=0, note="gateway:gateway-9")
    await gateway.bus.purge(streams.STATES.name)
    await gateway.bus.publish(subjects.state("default", job), meta=said, contract="state.v1")
    stopped = await gateway.bus.subscribe(subjects.moved("gateway-9"), lambda _: None)
    status, body, headers = await gateway.call("DELETE", f"/v1/jobs/{job}")
    assert (status, body["code"]) == (503, "E_UNAVAILABLE")
    assert headers["retry-after"]
    assert await gateway.bus.get_last(streams.RECORDS.name, subjects.record("default", job)) is None
    await stopped.stop()
    assert (await gateway.call("DELETE", f"/v1/jobs/{job}"))[0] == 200
