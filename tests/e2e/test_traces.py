"""One trace through every hop, as a real OTLP receiver sees it."""

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.support.platform import Client, Platform, client, started

pytestmark = [pytest.mark.platform, pytest.mark.docker]

#: What is not told by a span of the sync path may last this long.
GAP_S = 0.001

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Seen:
    service: str
    name: str
    trace: str
    span: str
    parent: str
    start: float
    end: float


class Receiver:
    """An OTLP endpoint over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for group in request.resource_spans:
                    service = next(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
                    for scope in group.scope_spans:
                        for span in scope.spans:
                            receiver.spans.append(
                                Seen(service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                                     span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9)
                            )  # fmt: skip
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def of(self, trace: str) -> list[Seen]:
        return [span for span in self.spans if span.trace == trace]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


@pytest.fixture(scope="module")
def traced(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    data: Path = tmp_path_factory.mktemp("traces") / "data"
    with started(data, env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "HEARTH_TRACES_PER_SECOND": "1000"}) as platform:
        yield platform


@pytest.fixture
async def hearth(traced: Platform) -> AsyncIterator[Client]:
    async with client(traced) as speaker:
        yield speaker


def tree(spans: list[Seen], top: str) -> list[tuple[str, str, str]]:
    """(service, name, parent's name), sorted; `top` is the name of the caller's own span."""
    names = {span.span: span.name for span in spans}
    return sorted((span.service, span.name, names.get(span.parent, top)) for span in spans)


SYNC = [
    ("executor", "function traced", "process hearth.v1.runs_sync"),
    ("executor", "process hearth.v1.runs_sync", "send hearth.v1.runs_sync"),
    ("executor", "record", "process hearth.v1.runs_sync"),
    ("executor", "send hearth.v1.replies", "process hearth.v1.runs_sync"),
    ("executor", "wait for a slot", "process hearth.v1.runs_sync"),
    ("gateway", "POST /v1/functions/{name}/invoke", "the caller"),
    ("gateway", "send hearth.v1.calls", "POST /v1/functions/{name}/invoke"),
    ("persister", "process hearth.v1.records", "record"),
    ("persister", "store local", "process hearth.v1.records"),
    ("scheduler", "place", "process hearth.v1.calls"),
    ("scheduler", "process hearth.v1.calls", "send hearth.v1.calls"),
    ("scheduler", "send hearth.v1.runs_sync", "process hearth.v1.calls"),
    ("scheduler", "wait", "process hearth.v1.calls"),
]


def untold(spans: list[Seen]) -> float:
    """The longest moment, from the request to its answer, that lies in no span below the request's own; seconds."""
    request = next(span for span in spans if span.name.startswith("POST"))
    at, longest = request.start, 0.0
    for start, end in sorted((span.start, span.end) for span in spans if span is not request):
        if start >= request.end:
            break
        longest = max(longest, start - at)
        at = max(at, min(end, request.end))
    return max(longest, request.end - at)


async def test_a_sync_call_is_one_tree_with_no_orphan_and_no_gap(hearth: Client, receiver: Receiver) -> None:
    """Every warm call has exactly these spans. On a busy machine any hop may wait for a processor, which no span can tell, so
    the gap is judged by the best of twenty calls: what the platform itself leaves untold is untold in each of them."""
    await hearth.deploy("traced")
    await hearth.invoke("traced")  # cold, so that the next are the plain warm path
    traces = [f"{number:032x}" for number in range(0xFEED00, 0xFEED00 + 20)]
    for trace in traces:
        answer = await hearth.invoke("traced", headers={"traceparent": CALLER.replace(CALLER[3:35], trace)})
        assert answer.headers["traceparent"][3:35] == trace
    gaps = []
    for trace in traces:
        await hearth.until(lambda trace=trace: len(receiver.of(trace)) >= len(SYNC), 20, "spans are missing")
        assert tree(receiver.of(trace), "the caller") == SYNC
        gaps.append(untold(receiver.of(trace)))
    assert min(gaps) <= GAP_S, [f"{gap * 1000:.2f} ms" for gap in gaps]


async def test_a_cold_start_tells_its_phases(hearth: Client, receiver: Receiver) -> None:
    await hearth.deploy("chilly")
    answer = await hearth.invoke("chilly")
    trace = answer.headers["traceparent"][3:35]
    await hearth.until(lambda: any(span.name == "cold start" for span in receiver.of(trace)), 20, "no cold start")
    phases = {span.name for span in receiver.of(trace) if span.name.startswith("cold: ")}
    assert {"cold: code", "cold: import"} <= phases


async def test_an_async_job_stays_in_its_callers_trace(hearth: Client, receiver: Receiver) -> None:
    await hearth.deploy("later")
    caller = CALLER.replace("0af7651916cd43dd8448eb211c80319c", "1bf7651916cd43dd8448eb211c80319c")
    answer = await hearth.call(
        "POST", "/v1/functions/later/invoke", json={}, headers={"Prefer": "respond-async", "traceparent": caller}
    )
    await hearth.final(answer.headers["x-hearth-job"])
    wanted = {"send hearth.v1.jobs", "process hearth.v1.jobs", "process hearth.v1.runs", "function later", "store local"}
    await hearth.until(lambda: wanted <= {span.name for span in receiver.of(caller[3:35])}, 20, "spans are missing")
    shown = (await hearth.call("GET", f"/v1/jobs/{answer.headers['x-hearth-job']}/trace")).json
    assert shown["trace_id"] == caller[3:35]
    assert wanted <= {span["name"] for span in shown["spans"]}
