"""Traces: context in and out, sampling by rate, spans on the bus and at a real OTLP receiver."""

import http.server
import json
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hearth_contracts import subjects
from hearth_contracts.keys import SpanBatch
from hearth_kit import tracing
from hearth_kit.clock import ManualClock
from hearth_kit.memory_bus import MemoryBroker
from hearth_kit.otlp import Exporter
from hearth_kit.tracing import Sampler, Tracer, parse

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("header", "known"), [
    (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN, True)),
    (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN, False)),
    (f"00-{TRACE}-{SPAN}-03", (TRACE, SPAN, True)),
    (f"01-{TRACE}-{SPAN}-01", (TRACE, SPAN, True)),
    (f"01-{TRACE}-{SPAN}-01-more", (TRACE, SPAN, True)),
    (f"00-{TRACE}-{SPAN}-01-more", None),
    (f"ff-{TRACE}-{SPAN}-01", None),
    (f"00-{'0' * 32}-{SPAN}-01", None),
    (f"00-{TRACE}-{'0' * 16}-01", None),
    (f"00-{TRACE.upper()}-{SPAN}-01", None),
    (f"00-{TRACE}-{SPAN}", None),
    (f" 00-{TRACE}-{SPAN}-01", None),
    (f"00-{TRACE}-{SPAN}-01\n", None),
    ("", None),
    ("garbage", None),
])  # fmt: skip
def test_a_callers_context_is_taken_or_left(header, known):
    context = parse(header)
    assert (context and (context.trace_id, context.span_id, context.sampled)) == known


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def broker(clock):
    return MemoryBroker(clock)


def make(broker, clock, *, per_second=10.0, exporter=None, service="gateway"):
    return Tracer(service=service, instance="gateway-1", bus=broker.connect("gateway-1"), clock=clock, per_second=per_second,
                  exporter=exporter)  # fmt: skip


def test_a_callers_trace_is_kept_with_its_decision(broker, clock):
    tracer = make(broker, clock, per_second=0)
    for sampled in ("01", "00"):
        context = tracer.root(f"00-{TRACE}-{SPAN}-{sampled}").child()
        assert (context.trace_id, context.sampled) == (TRACE, sampled == "01")
        assert context.span_id != SPAN
        assert parse(context.header) == context


def test_a_request_without_one_begins_a_trace_and_a_message_without_one_an_unseen_one(broker, clock):
    tracer = make(broker, clock)
    assert tracer.root().sampled
    assert tracer.root().trace_id != tracer.root().trace_id
    continued = tracer.continued("")
    assert not continued.sampled
    assert parse(continued.child().header) is not None


def test_new_traces_are_sampled_by_rate_not_by_ratio(clock):
    sampler = Sampler(10)
    assert sum(sampler.take(clock.now()) for _ in range(1000)) == 10
    clock.advance(0.5)
    assert sum(sampler.take(clock.now()) for _ in range(1000)) == 5
    taken = 0
    for _ in range(1000):  # a request each 120 ms: fewer than the rate allows, all are seen
        clock.advance(0.12)
        taken += sampler.take(clock.now())
    assert taken == 1000


@pytest.mark.parametrize(("per_second", "seen"), [(0, 0), (0.5, 5), (1, 10), (3, 30)])
def test_the_rate_holds_over_time(clock, per_second, seen):
    sampler = Sampler(per_second)
    sampler.take(clock.now())
    taken = 0
    for _ in range(10_000):
        clock.advance(0.001)
        taken += sampler.take(clock.now())
    assert abs(taken - seen) <= 1


async def test_spans_travel_over_the_bus_by_trace(broker, clock):
    tracer = make(broker, clock)
    first, second = tracer.root().child(), tracer.root().child()
    unseen = tracer.continued("").child()
    tracer.span(first, "POST /x", parent="", start=1, end=2, kind="server", attributes={"faas.name": "resize", "n": 1})
    tracer.span(first.child(), "send", parent=first.span_id, start=1.1, end=1.2, kind="producer", links=[f"00-{TRACE}-{SPAN}-01"])
    tracer.span(second, "POST /y", parent="", start=1, end=2, error="boom")
    tracer.span(unseen, "POST /z", parent="", start=1, end=2)
    await tracer.flush()
    await tracer.flush()
    stored = await broker.connect("reader").get_last_each("TRACES", [subjects.TRACES_ALL])
    assert [one.subject for one in stored] == [subjects.trace(first.trace_id), subjects.trace(second.trace_id)]
    assert stored[0].message.meta(SpanBatch) == SpanBatch(service="gateway", instance="gateway-1", count=2)
    spans = json.loads(stored[0].message.body)
    assert [(span["name"], span["parent"], span["kind"]) for span in spans] == [
        ("POST /x", "", "server"), ("send", first.span_id, "producer"),
    ]  # fmt: skip
    assert spans[0]["attributes"] == {"faas.name": "resize", "n": 1}
    assert json.loads(stored[1].message.body)[0]["error"] == "boom"


async def test_spans_are_bounded_and_never_waited_for(broker, clock, monkeypatch):
    monkeypatch.setattr(tracing, "QUEUE_MAX", 5)
    tracer = make(broker, clock)
    context = tracer.root()
    for _ in range(8):
        tracer.span(context.child(), "x", parent="", start=1, end=2)
    assert tracer.dropped == 3
    broker.streams.clear()
    await tracer.flush()
    assert tracer.dropped == 8


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.received, server.answer = [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(receiver) -> str:
    return f"http://127.0.0.1:{receiver.server_port}"


async def test_a_receiver_gets_the_spans_as_they_were(broker, clock, receiver):
    tracer = make(broker, clock, exporter=Exporter(url(receiver)))
    root = tracer.root(f"00-{TRACE}-{SPAN}-01")
    below = root.child()
    tracer.span(below, "POST /v1/functions/{name}/invoke", parent=root.span_id, start=100.25, end=100.5, kind="server",
                attributes={"faas.name": "resize", "faas.coldstart": True, "n": 3, "f": 1.5},
                links=[f"00-{'12' * 16}-{'34' * 8}-01", "", "garbage"])  # fmt: skip
    tracer.span(below.child(), "failed", parent=below.span_id, start=100.3, end=100.4, error="boom")
    await tracer.flush()
    assert tracer.dropped == 0
    [(path, request)] = receiver.received
    assert path == "/v1/traces"
    [resource] = request.resource_spans
    named = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (named["service.name"], named["service.instance.id"]) == ("gateway", "gateway-1")
    first, second = resource.scope_spans[0].spans
    assert (first.name, first.trace_id.hex(), first.span_id.hex(), first.parent_span_id.hex()) == (
        "POST /v1/functions/{name}/invoke", TRACE, below.span_id, SPAN,
    )  # fmt: skip
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (100_250_000_000, 100_500_000_000)
    assert first.kind == 2  # server
    attributes = {one.key: one.value for one in first.attributes}
    assert (attributes["faas.name"].string_value, attributes["faas.coldstart"].bool_value) == ("resize", True)
    assert (attributes["n"].int_value, attributes["f"].double_value) == (3, 1.5)
    assert [link.span_id.hex() for link in first.links] == ["34" * 8]
    assert (second.status.code, second.status.message) == (2, "boom")


async def test_a_receiver_that_refuses_or_is_not_there_loses_spans_and_nothing_else(broker, clock, receiver):
    receiver.answer = 400
    tracer = make(broker, clock, exporter=Exporter(url(receiver)))
    tracer.span(tracer.root().child(), "x", parent="", start=1, end=2)
    await tracer.flush()
    assert tracer.dropped == 1
    assert await broker.connect("reader").get_last_each("TRACES", [subjects.TRACES_ALL]) != []


def test_the_address_of_the_receiver_may_be_given_either_way():
    assert Exporter("http://c:4318")._endpoint == "http://c:4318/v1/traces"
    assert Exporter("http://c:4318/")._endpoint == "http://c:4318/v1/traces"
    assert Exporter("http://c:4318/v1/traces")._endpoint == "http://c:4318/v1/traces"
