"""What every bus does. Each test runs on `MemoryBus` and on the real broker: services are tested on the first and run on
the second."""

import asyncio
import secrets

import pytest

from hearth_contracts import functions, streams, subjects
from hearth_contracts.calls import Body, Call
from hearth_contracts.enums import FunctionState, Lane
from hearth_contracts.errors import InvalidName, UndecodableMessage
from hearth_contracts.functions import CodeRef, FunctionHead, FunctionSpec, FunctionVersion
from hearth_contracts.keys import ApiKey
from hearth_contracts.objects import CHUNK_BYTES
from hearth_contracts.streams import Stream
from hearth_kit import errors
from hearth_kit.bus import ConsumerSpec
from hearth_kit.kv import Bucket
from hearth_kit.message import Message
from hearth_kit.objects import ObjectMissing, Objects, ObjectTooLarge
from hearth_kit.registry import Registry

from .conftest import DEADLINE_S

JOB = subjects.job("acme", "resize")
OTHER = subjects.job("acme", "other")
#: Short enough to wait for in real time.
ACK_WAIT_S = 0.4

CALL = Call(
    job="resize-0123456789abcdefghjkmnpqrs", tenant="acme", function="resize", version=1, lane=Lane.ASYNC, submitted_at=1.5
)


async def worker(world, *, name="w", stream="JOBS", **settings):
    await world.bus.ensure_consumer(ConsumerSpec(stream, name, **{"ack_wait_s": ACK_WAIT_S, **settings}))
    return name


def fresh_id():
    """The broker remembers ids longer than a test lasts."""
    return secrets.token_hex(8)


class Inbox(list):
    """A handler that keeps what it gets, and may settle it."""

    def __init__(self, settle=None):
        super().__init__()
        self.settle = settle

    def __call__(self, message: Message) -> None:
        self.append(message)
        if self.settle is not None:
            self.settle(message)

    @property
    def bodies(self):
        return [message.body for message in self]


# Publishing


async def test_an_acknowledgement_names_stream_and_sequence(world):
    first = await world.bus.publish(JOB, b"1")
    second = await world.bus.publish(OTHER, b"2")
    assert (first.stream, first.duplicate) == ("JOBS", False)
    assert second.sequence == first.sequence + 1


async def test_the_same_id_is_stored_once(world):
    once = fresh_id()
    first = await world.bus.publish(JOB, b"1", msg_id=once)
    again = await world.bus.publish(JOB, b"1", msg_id=once)
    assert (again.duplicate, again.sequence) == (True, first.sequence)
    assert (await world.bus.stream_info("JOBS")).messages == 1


async def test_the_same_id_on_another_subject_is_swallowed(world):
    """Deduplication is per stream: why a placement's id carries its number (DELIVERY rule 4)."""
    once = fresh_id()
    await world.bus.publish(JOB, b"1", msg_id=once)
    assert (await world.bus.publish(OTHER, b"2", msg_id=once)).duplicate
    assert await world.bus.get_last("JOBS", OTHER) is None


async def test_only_the_first_writes_where_nothing_is_expected(world):
    record = subjects.record("acme", CALL.job)
    first = await world.bus.publish(record, b"first", expect_last=0)
    with pytest.raises(errors.WrongLastSequence):
        await world.bus.publish(record, b"second", expect_last=0)
    assert (await world.bus.get_last("RECORDS", record)).message.body == b"first"
    await world.bus.publish(record, b"third", expect_last=first.sequence)


async def test_a_subscriber_hears_even_what_the_stream_refused(world):
    """Why answers come from a direct get, and a delivery is only a reason to look (DELIVERY rule 3)."""
    record = subjects.record("acme", CALL.job)
    heard = Inbox()
    await world.bus.subscribe(subjects.RECORDS_ALL, heard)
    await world.bus.publish(record, b"first", expect_last=0)
    with pytest.raises(errors.WrongLastSequence):
        await world.bus.publish(record, b"second", expect_last=0)
    await world.until(lambda: len(heard) == 2)
    assert heard.bodies == [b"first", b"second"]


async def test_a_full_subject_says_so_and_the_others_do_not_notice(world):
    await world.bus.ensure_stream(
        Stream("CAPPED", ("capped.*",), "memory", "workqueue", "new", max_msgs_per_subject=2, discard_new_per_subject=True)
    )
    await world.bus.purge("CAPPED")
    for number in range(2):
        await world.bus.publish("capped.a", str(number).encode())
    with pytest.raises(errors.StreamFull):
        await world.bus.publish("capped.a", b"2")
    await world.bus.publish("capped.b", b"0")


@pytest.mark.parametrize(("discard", "kept"), [("new", [b"0", b"1"]), ("old", [b"1", b"2"])])
async def test_a_full_stream_refuses_the_new_or_forgets_the_old(world, discard, kept):
    name = f"FULL_{discard.upper()}"
    await world.bus.ensure_stream(Stream(name, (f"full.{discard}.*",), "memory", "limits", discard, max_msgs=2))
    await world.bus.purge(name)
    for number in range(3):
        if discard == "new" and number == 2:
            with pytest.raises(errors.StreamFull):
                await world.bus.publish(f"full.{discard}.{number}", str(number).encode())
        else:
            await world.bus.publish(f"full.{discard}.{number}", str(number).encode())
    assert [one.message.body for one in await world.bus.get_last_each(name, [f"full.{discard}.*"])] == kept


async def test_a_bucket_keeps_the_last_of_each_key(world):
    for number in range(3):
        await world.bus.publish("$KV.KEYS.a", str(number).encode())
    assert (await world.bus.stream_info("KV_KEYS")).messages == 1
    assert (await world.bus.get_last("KV_KEYS", "$KV.KEYS.a")).message.body == b"2"


async def test_a_subject_of_no_stream_is_an_error(world):
    with pytest.raises(errors.StreamMissing):
        await world.bus.publish("nowhere.at.all", b"", timeout_s=0.4)


async def test_a_message_arrives_as_it_was_sent(world):
    inbox = Inbox(Message.ack)
    body = bytes(range(256))
    call = CALL.model_copy(update={"caller": "Zoë \U0001f525 line\nbreak", "input": Body(size=256)})
    await world.bus.pull("JOBS", await worker(world), inbox)
    await world.bus.publish(JOB, body, meta=call, contract="job.v1", traceparent="00-ab-cd-01", headers={"X-Own": "1"})
    await world.until(lambda: inbox)
    message = inbox[0]
    assert message.meta(Call) == call
    assert (message.body, message.subject, message.traceparent) == (body, JOB, "00-ab-cd-01")
    assert (message.headers["Hearth-Contract"], message.headers["X-Own"]) == ("job.v1", "1")
    assert (message.delivered, message.sequence, message.pending) == (1, (await world.bus.stream_info("JOBS")).last_sequence, 0)


async def test_a_message_without_or_with_a_wrong_meta_is_undecodable(world):
    inbox = Inbox()
    await world.bus.subscribe("plain.>", inbox)
    world.bus.send("plain.a", b"x")
    world.bus.send("plain.b", b"x", headers={"Hearth-Meta": '{"job": 7}'})
    world.bus.send("plain.c", b"x", headers={"Hearth-Meta": "not JSON"})
    await world.until(lambda: len(inbox) == 3)
    for message in inbox:
        with pytest.raises(UndecodableMessage):
            message.meta(Call)


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\rHearth-Meta: {}"])
async def test_a_header_cannot_smuggle_a_line(world, value):
    with pytest.raises(ValueError, match="line break"):
        await world.bus.publish(JOB, b"", headers={"X-Own": value})
    with pytest.raises(ValueError, match="line break"):
        world.bus.send(JOB, b"", headers={value: "x"})


# Core


async def test_a_subscription_takes_wildcards_and_ends(world):
    one, all_of_them = Inbox(), Inbox()
    first = await world.bus.subscribe("core.*.x", one)
    await world.bus.subscribe("core.>", all_of_them)
    for subject in ("core.a.x", "core.b.y", "core.a.x.z"):
        world.bus.send(subject, subject.encode())
    await world.until(lambda: len(all_of_them) == 3)
    assert one.bodies == [b"core.a.x"]
    await first.stop()
    world.bus.send("core.a.x", b"later")
    await world.until(lambda: len(all_of_them) == 4)
    assert len(one) == 1


async def test_a_queue_group_hears_each_message_once(world):
    first, second = Inbox(), Inbox()
    other = await world.another()
    await world.bus.subscribe("queue.*", first, queue="q")
    await other.subscribe("queue.*", second, queue="q")
    everything = Inbox()
    await other.subscribe("queue.*", everything)
    # The other connection's subscriptions are known to the broker once it answers on that connection.
    await other.get_last("JOBS", JOB)
    for number in range(20):
        world.bus.send(f"queue.{number}", b"")
    await world.until(lambda: len(everything) == 20 and len(first) + len(second) == 20)


async def test_a_request_is_answered(world):
    other = await world.another()

    def answer(message: Message) -> None:
        message.respond(message.body.upper(), {"X-Own": "1"})

    await other.subscribe("ask.*", answer)
    await other.get_last("JOBS", JOB)
    reply = await world.bus.request("ask.me", b"ada")
    assert (reply.body, reply.headers["X-Own"]) == (b"ADA", "1")


async def test_a_request_that_nobody_hears_fails_at_once_and_one_without_answer_at_its_deadline(world):
    with pytest.raises(errors.StreamMissing):
        await world.bus.request("ask.nobody", b"", timeout_s=30)
    await world.bus.subscribe("ask.silent", Inbox())
    with pytest.raises(errors.PublishTimeout):
        await world.bus.request("ask.silent", b"", timeout_s=0.2)


async def test_settling_a_message_that_no_consumer_delivered_says_nothing(world):
    """A person's own reply subject must not be sent our acknowledgements."""
    heard = Inbox()
    await world.bus.subscribe("people.inbox", heard)
    inbox = Inbox(lambda message: (message.ack(), message.nak(), message.term("no"), message.in_progress()))
    await world.bus.subscribe("people.>", lambda message: None if message.subject == "people.inbox" else inbox(message))
    world.bus.send("people.hello", b"", reply="people.inbox")
    await world.until(lambda: inbox)
    inbox[0].respond(b"the only answer")
    await world.until(lambda: heard)
    assert heard.bodies == [b"the only answer"]
    assert (inbox[0].delivered, inbox[0].sequence, inbox[0].pending) == (0, 0, 0)


# Consuming


async def test_an_acknowledged_message_leaves_a_work_queue(world):
    inbox = Inbox(Message.ack)
    await world.bus.publish(JOB, b"1")
    await world.bus.pull("JOBS", await worker(world), inbox)
    await world.until(lambda: inbox)
    while (await world.bus.stream_info("JOBS")).messages:
        await world.quiet(0.01)
    info = await world.bus.consumer_info("JOBS", "w")
    assert (info.pending, info.ack_pending) == (0, 0)


async def test_a_refused_message_leaves_a_work_queue(world):
    inbox = Inbox(lambda message: message.term("cannot be read"))
    await world.bus.publish(JOB, b"1")
    await world.bus.pull("JOBS", await worker(world), inbox)
    await world.until(lambda: inbox)
    while (await world.bus.stream_info("JOBS")).messages:
        await world.quiet(0.01)
    await world.quiet(2 * ACK_WAIT_S)
    assert len(inbox) == 1


async def test_messages_come_in_order_and_more_than_a_batch(world):
    inbox = Inbox(Message.ack)
    for number in range(40):
        await world.bus.publish(JOB, str(number).encode())
    await world.bus.pull("JOBS", await worker(world), inbox, batch=8)
    await world.until(lambda: len(inbox) == 40)
    for number in range(40, 60):
        await world.bus.publish(JOB, str(number).encode())
    await world.until(lambda: len(inbox) == 60)
    assert inbox.bodies == [str(number).encode() for number in range(60)]


async def test_a_handler_that_fails_stops_nothing_and_its_message_comes_again(world):
    seen = Inbox()

    def fail_first(message: Message) -> None:
        seen.append(message)
        if message.delivered == 1 and message.body == b"bad":
            raise RuntimeError("a bug")
        message.ack()

    await world.bus.pull("JOBS", await worker(world), fail_first)
    await world.bus.publish(JOB, b"bad")
    await world.bus.publish(JOB, b"good")
    await world.until(lambda: len(seen) == 3)
    assert sorted(seen.bodies) == [b"bad", b"bad", b"good"]
    assert [message.delivered for message in seen if message.body == b"bad"] == [1, 2]


async def test_what_is_not_settled_comes_again_after_the_wait(world):
    inbox = Inbox()
    await world.bus.publish(JOB, b"1")
    await world.bus.pull("JOBS", await worker(world), inbox)
    await world.until(lambda: len(inbox) == 3)
    assert [message.delivered for message in inbox] == [1, 2, 3]
    inbox[-1].ack()


async def test_work_in_progress_is_not_given_to_another(world):
    inbox = Inbox()
    await world.bus.publish(JOB, b"1")
    await world.bus.pull("JOBS", await worker(world), inbox)
    await world.until(lambda: inbox)
    for _ in range(8):
        inbox[0].in_progress()
        await world.quiet(ACK_WAIT_S / 3)
    assert len(inbox) == 1
    inbox[0].ack()


async def test_a_message_handed_back_comes_again_at_once_or_after_the_delay(world):
    inbox = Inbox(lambda message: message.nak() if message.delivered == 1 else None)
    await world.bus.publish(JOB, b"1")
    await world.bus.pull("JOBS", await worker(world, ack_wait_s=30), inbox)
    await world.until(lambda: len(inbox) == 2, within_s=2)
    inbox[1].nak(1.0)
    await world.quiet(0.5)
    assert len(inbox) == 2
    await world.until(lambda: len(inbox) == 3, within_s=3)
    inbox[2].ack()


async def test_a_granted_pump_gets_exactly_what_was_granted(world):
    inbox = Inbox(Message.ack)
    for number in range(10):
        await world.bus.publish(JOB, str(number).encode())
    pump = await world.bus.pull("JOBS", await worker(world, ack_wait_s=30), inbox, auto=False)
    await world.quiet(0.2)
    assert (len(inbox), pump.granted) == (0, 0)
    pump.grant(3)
    assert pump.granted in (0, 3)
    await world.until(lambda: len(inbox) == 3)
    pump.grant(1)
    pump.grant(2)
    await world.until(lambda: len(inbox) == 6)
    await world.quiet(0.2)
    assert (len(inbox), pump.granted) == (6, 0)
    pump.grant(10)
    await world.until(lambda: len(inbox) == 10)
    assert pump.granted == 6


async def test_two_pumps_share_a_consumer(world):
    first, second = Inbox(Message.ack), Inbox(Message.ack)
    other = await world.another()
    name = await worker(world)
    one = await world.bus.pull("JOBS", name, first, auto=False)
    two = await other.pull("JOBS", name, second, auto=False)
    one.grant(3)
    two.grant(3)
    for number in range(6):
        await world.bus.publish(JOB, str(number).encode())
    await world.until(lambda: len(first) == 3 and len(second) == 3)
    assert sorted(first.bodies + second.bodies) == [str(number).encode() for number in range(6)]


async def test_a_stopped_pump_gets_nothing_more_and_leaves_it_to_others(world):
    first, second = Inbox(Message.ack), Inbox(Message.ack)
    name = await worker(world, ack_wait_s=30)
    pump = await world.bus.pull("JOBS", name, first)
    await world.bus.publish(JOB, b"1")
    await world.until(lambda: first)
    await pump.stop()
    await world.bus.publish(JOB, b"2")
    other = await world.another()
    await other.pull("JOBS", name, second)
    # At once, not after the half minute of the wait.
    await world.until(lambda: second, within_s=3)
    assert (first.bodies, second.bodies) == ([b"1"], [b"2"])


async def test_no_more_than_allowed_wait_for_their_settlement(world):
    inbox = Inbox()
    for number in range(5):
        await world.bus.publish(JOB, str(number).encode())
    await world.bus.pull("JOBS", await worker(world, ack_wait_s=30, max_ack_pending=2), inbox)
    await world.until(lambda: len(inbox) == 2)
    await world.quiet(0.2)
    assert len(inbox) == 2
    inbox[0].ack()
    await world.until(lambda: len(inbox) == 3)


async def test_a_consumer_takes_what_its_filter_says(world):
    inbox = Inbox(Message.ack)
    name = await worker(world, filter_subject=OTHER)
    await world.bus.pull("JOBS", name, inbox)
    await world.bus.publish(JOB, b"1")
    await world.bus.publish(OTHER, b"2")
    await world.until(lambda: inbox)
    assert inbox.bodies == [b"2"]
    assert (await world.bus.stream_info("JOBS")).messages >= 1


async def test_a_new_consumer_may_begin_at_the_end(world):
    inbox = Inbox(Message.ack)
    await world.bus.publish(subjects.dead("acme", CALL.job), b"old")
    await world.bus.pull("DEAD", await worker(world, stream="DEAD", deliver_new=True), inbox)
    await world.bus.publish(subjects.dead("acme", CALL.job), b"new")
    await world.until(lambda: inbox)
    assert inbox.bodies == [b"new"]


async def test_one_word_may_settle_all_before_it(world):
    inbox = Inbox()
    record = [subjects.record("acme", f"resize-{number:026d}") for number in range(5)]
    for subject in record:
        await world.bus.publish(subject, b"")
    await world.bus.pull("RECORDS", await worker(world, stream="RECORDS", ack_all=True, ack_wait_s=30), inbox)
    await world.until(lambda: len(inbox) == 5)
    inbox[3].ack()
    while (info := await world.bus.consumer_info("RECORDS", "w")).ack_pending != 1:
        await world.quiet(0.01)
    assert info.ack_floor == inbox[3].sequence
    assert (await world.bus.stream_info("RECORDS")).messages == 5


async def test_consumers_are_listed_known_and_removed(world):
    assert await world.bus.consumer_info("JOBS", "w") is None
    await worker(world, name="a", filter_subject=JOB)
    await worker(world, name="b", filter_subject=OTHER)
    await worker(world, name="a", filter_subject=JOB)  # the same again changes nothing
    ack = await world.bus.publish(JOB, b"1")
    assert await world.bus.consumer_names("JOBS") == ["a", "b"]
    info = await world.bus.consumer_info("JOBS", "a")
    assert (info.pending, info.ack_pending) == (1, 0)
    assert info.delivered < ack.sequence
    await world.bus.delete_consumer("JOBS", "a")
    await world.bus.delete_consumer("JOBS", "a")
    assert await world.bus.consumer_names("JOBS") == ["b"]


async def test_a_setting_of_a_consumer_can_be_changed(world):
    inbox = Inbox()
    await world.bus.publish(JOB, b"1")
    await worker(world, ack_wait_s=60)
    await worker(world, ack_wait_s=ACK_WAIT_S)
    await world.bus.pull("JOBS", "w", inbox)
    await world.until(lambda: len(inbox) == 2)


async def test_a_pump_is_told_of_a_lost_consumer_and_goes_on_with_a_new_one(world):
    inbox, lost = Inbox(Message.ack), []
    name = await worker(world)
    await world.bus.pull("JOBS", name, inbox, lost=lost.append)
    await world.bus.publish(JOB, b"1")
    await world.until(lambda: inbox)
    await world.bus.delete_consumer("JOBS", name)
    await world.until(lambda: lost)
    await worker(world)
    await world.bus.publish(JOB, b"2")
    await world.until(lambda: b"2" in inbox.bodies)


# Reading back


async def test_what_is_stored_can_be_read_by_subject_and_sequence(world):
    first = await world.bus.publish(JOB, b"1", headers={"X-Own": "1"})
    second = await world.bus.publish(OTHER, b"2")
    third = await world.bus.publish(JOB, b"3")
    last = await world.bus.get_last("JOBS", JOB)
    assert (last.subject, last.sequence, last.message.body) == (JOB, third.sequence, b"3")
    assert last.at > 1_600_000_000
    assert (await world.bus.get_at("JOBS", first.sequence)).message.headers["X-Own"] == "1"
    assert (await world.bus.get_next("JOBS", subjects.JOBS_ALL, second.sequence)).sequence == second.sequence
    assert (await world.bus.get_next("JOBS", JOB, second.sequence)).sequence == third.sequence
    assert (await world.bus.get_next("JOBS", JOB)).sequence == first.sequence
    assert await world.bus.get_last("JOBS", subjects.job("acme", "nothing")) is None
    assert await world.bus.get_at("JOBS", third.sequence + 1) is None
    assert await world.bus.get_next("JOBS", JOB, third.sequence + 1) is None


async def test_the_last_of_each_subject_is_read_past_the_brokers_thousand(world):
    for number in range(2300):
        world.bus.send(f"$KV.KEYS.k{number:04d}", str(number).encode())
    for number in range(100):
        await world.bus.publish(f"$KV.KEYS.k{number:04d}", b"again")
    found = await world.bus.get_last_each("KV_KEYS", ["$KV.KEYS.>"])
    assert len(found) == len({one.subject for one in found}) == 2300
    assert [one.sequence for one in found] == sorted(one.sequence for one in found)
    assert sum(one.message.body == b"again" for one in found) == 100
    some = await world.bus.get_last_each("KV_KEYS", ["$KV.KEYS.>"], messages_max=1000)
    assert [one.sequence for one in some] == [one.sequence for one in found[:1000]]
    [seventh] = await world.bus.get_last_each("KV_KEYS", ["$KV.KEYS.none", "$KV.KEYS.k0007"])
    assert (seventh.subject, seventh.message.body) == ("$KV.KEYS.k0007", b"again")
    assert await world.bus.get_last_each("JOBS", [subjects.JOBS_ALL]) == []


async def test_a_stream_is_purged_by_subject_and_by_sequence(world):
    for number in range(4):
        last = await world.bus.publish(JOB if number % 2 else OTHER, str(number).encode())
    assert await world.bus.purge("JOBS", subject=OTHER) == 2
    assert await world.bus.purge("JOBS", below_sequence=last.sequence) == 1
    assert (await world.bus.get_next("JOBS", subjects.JOBS_ALL)).sequence == last.sequence
    assert await world.bus.purge("JOBS") == 1
    info = await world.bus.stream_info("JOBS")
    assert (info.messages, info.last_sequence) == (0, last.sequence)


async def test_a_stream_is_made_once_and_known(world):
    await world.bus.publish(JOB, b"1")
    await world.bus.ensure_stream(streams.JOBS)
    info = await world.bus.stream_info("JOBS")
    assert (info.messages, info.config["retention"]) == (1, "workqueue")
    assert await world.bus.stream_info("NONE") is None


# Buckets, objects, the registry


def key(name: str, **settings) -> ApiKey:
    return ApiKey(prefix=name, tenant="acme", **settings)


async def test_a_bucket_creates_updates_and_deletes(world):
    bucket = Bucket(world.bus, streams.KEYS, ApiKey)
    assert await bucket.get("a") is None
    revision = await bucket.create("a", key("one"))
    with pytest.raises(errors.WrongLastSequence):
        await bucket.create("a", key("two"))
    with pytest.raises(errors.WrongLastSequence):
        await bucket.update("a", key("two"), revision=revision + 1)
    await bucket.update("a", key("three"), revision=revision)
    assert (await bucket.get("a")).value.prefix == "three"
    await bucket.put("b.c", key("four"))
    assert [entry.key for entry in await bucket.all()] == ["a", "b.c"]
    assert [entry.key for entry in await bucket.all("b.>")] == ["b.c"]
    await bucket.delete("a")
    assert await bucket.get("a") is None
    assert [entry.key for entry in await bucket.all()] == ["b.c"]
    await bucket.update("a", key("five"), revision=(await bucket.last("a")).sequence)
    assert (await bucket.get("a")).value.prefix == "five"


@pytest.mark.parametrize("bad", ["", "a b", "a\r\nPUB x 0\r\n", "a..b", ".a", "a.", "*", "a.>", "é", "x" * 201, "a\0b"])
async def test_a_key_that_may_not_stand_in_a_subject_is_refused(world, bad):
    bucket = Bucket(world.bus, streams.KEYS, ApiKey)
    for act in (bucket.get(bad), bucket.put(bad, key("x")), bucket.delete(bad), bucket.create(bad, key("x"))):
        with pytest.raises(InvalidName):
            await act


async def test_an_entry_that_does_not_parse_is_absent(world):
    await world.bus.publish("$KV.KEYS.broken", b"{")
    bucket = Bucket(world.bus, streams.KEYS, ApiKey)
    await bucket.put("good", key("good"))
    assert await bucket.get("broken") is None
    assert [entry.key for entry in await bucket.all()] == ["good"]


async def test_an_entry_with_a_time_to_live_goes_and_leaves_the_key_free(world):
    from hearth_contracts.keys import Lease

    bucket = Bucket(world.bus, streams.LEASES, Lease)
    lease = Lease(holder="a", role="r", at=0)
    revision = await bucket.create("r", lease, ttl_s=1)
    assert (await bucket.get("r")).revision == revision
    while await bucket.last("r") is not None:
        await world.quiet(0.1)
    assert await bucket.create("r", lease, ttl_s=1) > revision


async def test_a_mirror_follows_its_bucket(world):
    bucket = Bucket(world.bus, streams.KEYS, ApiKey)
    changes = []
    await bucket.put("a", key("one"))
    mirror = await bucket.mirror(lambda name, value: changes.append((name, value and value.prefix)))
    assert mirror.get("a").prefix == "one"
    other = Bucket(await world.another(), streams.KEYS, ApiKey)
    revision = await other.put("a", key("two"))
    await other.put("b", key("three"))
    await world.until(lambda: mirror.get("b") and mirror.get("a").prefix == "two")
    with pytest.raises(errors.WrongLastSequence):
        await other.update("a", key("refused"), revision=revision + 7)
    await other.delete("b")
    await world.until(lambda: mirror.get("b") is None)
    assert (mirror.get("a").prefix, mirror.entry("a").revision, [name for name, _ in mirror.items()]) == ("two", revision, ["a"])
    assert changes == [("a", "one"), ("a", "two"), ("b", "three"), ("b", None)]
    await mirror.stop()


async def test_a_mirror_read_again_drops_what_is_gone_and_keeps_what_is_new(world):
    bucket = Bucket(world.bus, streams.KEYS, ApiKey)
    for name in "ab":
        await bucket.put(name, key(name))
    mirror = await bucket.mirror()
    await world.bus.purge("KV_KEYS", subject="$KV.KEYS.a")
    reading = mirror.reload()
    await bucket.put("c", key("c"))
    await reading
    await world.until(lambda: mirror.get("c"))
    assert sorted(name for name, _ in mirror.items()) == ["b", "c"]
    assert await mirror.fresh("a") is None
    assert (await mirror.fresh("b")).prefix == "b"


@pytest.mark.parametrize("what", ["a mirror", "the registry"])
async def test_a_write_that_is_heard_before_it_is_stored_is_found(world, monkeypatch, what):
    """The broker tells subscribers first: the look that follows may come too early."""
    if what == "a mirror":
        mirror = await Bucket(world.bus, streams.FUNCTIONS, FunctionHead).mirror()
    else:
        mirror = Registry(world.bus)
        await mirror.start()
    get_last = world.bus.get_last
    early = 2

    async def too_early(stream, subject):
        nonlocal early
        if early:
            early -= 1
            return None
        return await get_last(stream, subject)

    monkeypatch.setattr(world.bus, "get_last", too_early)
    await Bucket(await world.another(), streams.FUNCTIONS, FunctionHead).put("acme.resize", head_of(7))
    async with asyncio.timeout(DEADLINE_S):
        while (mirror.get("acme.resize") if what == "a mirror" else mirror.head("acme", "resize")) is None:
            await asyncio.sleep(0.005)
    assert early == 0


async def test_a_key_written_anew_while_a_mirror_reads_is_not_dropped(world, monkeypatch):
    bucket = Bucket(world.bus, streams.KEYS, ApiKey)
    await bucket.put("a", key("old"))
    mirror = await bucket.mirror()
    await world.bus.purge("KV_KEYS")
    read = world.bus.get_last_each

    async def read_and_then_it_is_written(stream, subjects):
        found = await read(stream, subjects)
        await bucket.put("a", key("new"))
        await world.until(lambda: mirror.get("a").prefix == "new")
        return found

    monkeypatch.setattr(world.bus, "get_last_each", read_and_then_it_is_written)
    await mirror.reload()
    assert mirror.get("a").prefix == "new"


async def test_an_object_is_whole_or_missing(world):
    objects = Objects(world.bus)
    data = bytes(range(256)) * 2048 + b"end"  # two chunks and a bit
    meta = await objects.put("bodies", "o1", data, content_type="image/png")
    assert (meta.size, meta.chunks, meta.content_type) == (len(data), 3, "image/png")
    assert await objects.head("bodies", "o1") == meta
    assert await objects.get("bodies", "o1") == data
    assert [len(chunk) async for chunk in objects.read("bodies", "o1")] == [CHUNK_BYTES, CHUNK_BYTES, 3]
    await world.bus.purge("OBJECTS_BODIES", subject=subjects.object_chunk("bodies", "o1", 1))
    with pytest.raises(ObjectMissing, match="gone"):
        await objects.get("bodies", "o1")
    await objects.delete("bodies", "o1")
    with pytest.raises(ObjectMissing):
        await objects.get("bodies", "o1")


async def test_an_object_exists_only_once_it_is_finished(world):
    objects = Objects(world.bus)
    writer = objects.writer("bodies", "o2", bytes_max=CHUNK_BYTES + 10)
    await writer.write(b"x" * CHUNK_BYTES)
    assert await objects.head("bodies", "o2") is None
    with pytest.raises(ObjectTooLarge):
        await writer.write(b"x" * 11)
    await writer.abandon()
    assert (await world.bus.stream_info("OBJECTS_BODIES")).messages == 0
    empty = await objects.put("bodies", "o3", b"")
    assert (empty.size, empty.chunks, await objects.get("bodies", "o3")) == (0, 0, b"")


def version_of(number: int, state: FunctionState = FunctionState.READY) -> FunctionVersion:
    return FunctionVersion(
        tenant="acme", function="resize", version=number, digest="d" * 64, state=state, spec=FunctionSpec(name="resize"),
        code=CodeRef(object="c", kind="file", size=1, sha256="s"), created_at=1,
    )  # fmt: skip


def head_of(current: int, **settings) -> FunctionHead:
    return FunctionHead(tenant="acme", function="resize", current=current, updated_at=1, **settings)


async def test_the_registry_knows_heads_and_versions_and_follows_them(world):
    heads = Bucket(world.bus, streams.FUNCTIONS, FunctionHead)
    versions = Bucket(world.bus, streams.FUNCTIONS, FunctionVersion)
    await versions.put(functions.registry_key("acme", "resize", 1), version_of(1, FunctionState.BUILDING))
    await heads.put(functions.registry_key("acme", "resize"), head_of(1))
    registry = Registry(await world.another())
    await registry.start()
    told = []
    registry.on_change(lambda head: told.append(head.current))
    assert registry.head("acme", "resize").current == 1
    assert registry.known("acme", "resize", 1).state == FunctionState.BUILDING
    await versions.put(functions.registry_key("acme", "resize", 1), version_of(1))
    await world.until(lambda: registry.known("acme", "resize", 1).state == FunctionState.READY)
    await versions.put(functions.registry_key("acme", "resize", 2), version_of(2))
    assert (await registry.version("acme", "resize", 2)).version == 2
    assert await registry.version("acme", "resize", 3) is None
    revision = await heads.put(functions.registry_key("acme", "resize"), head_of(2))
    await world.until(lambda: registry.head("acme", "resize").current == 2)
    assert await registry.fresh_head("acme", "resize") == (revision, head_of(2))
    await heads.put(functions.registry_key("acme", "resize"), head_of(2, deleted=True))
    await world.until(lambda: registry.head("acme", "resize") is None)
    assert (told, len(registry.heads())) == ([1, 2, 2], 1)


async def test_an_entry_of_a_later_release_does_not_stop_a_registry(world):
    await world.bus.publish("$KV.FUNCTIONS.acme.future.1", b'{"shape": "unknown"}')
    await world.bus.publish("$KV.FUNCTIONS.acme.future", b"not JSON")
    await world.bus.publish("$KV.FUNCTIONS.acme.gone.1", headers={"KV-Operation": "DEL"})
    await Bucket(world.bus, streams.FUNCTIONS, FunctionHead).put("acme.resize", head_of(1))
    registry = Registry(world.bus)
    await registry.start()
    assert registry.head("acme", "resize").current == 1
    assert registry.head("acme", "future") is None
    assert await registry.version("acme", "future", 1) is None
