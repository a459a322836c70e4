"""What travels as a header fits one, whatever is in it."""

import time

from hypothesis import example, given
from hypothesis import strategies as st

from hearth_contracts import bounds
from hearth_contracts.calls import (
    OUTPUTS_MAX,
    Body,
    Call,
    Dead,
    Ending,
    HttpRequest,
    Outcome,
    Output,
    Record,
    Run,
    Timings,
    Usage,
)
from hearth_contracts.enums import Lane, OutcomeKind, Reason, Start, State

ANY = st.text(st.characters(codec=None), max_size=300)
LARGE = st.builds(lambda text, times: text * times, ANY, st.integers(1, 400))
NASTY = ("\x01", '"', "\\", "\U0001f600", "\u00e9\n", "a", "\ud800")
NOW = 1_790_000_000.123456


def size(meta) -> int:
    return len(meta.model_dump_json(exclude_unset=True).encode())


@given(ANY)
def test_a_text_is_as_long_as_it_becomes(text):
    text = text.encode("utf-8", "replace").decode()
    assert bounds.text_bytes(text) == len(Body(content_type=text).model_dump_json(exclude_unset=True).encode()) - len(
        b'{"content_type":""}'
    )


@given(LARGE, st.integers(0, 5000))
@example("\U0001f600" * 30000, 4096)
@example("\x01" * 30000, 4096)
def test_what_is_clipped_fits_and_keeps_both_ends(text, bytes_max):
    kept = bounds.clip(text, bytes_max)
    assert bounds.text_bytes(kept) <= bytes_max
    whole = text.encode("utf-8", "replace").decode()
    if bounds.text_bytes(whole) <= bytes_max:
        assert kept == whole
    elif bytes_max >= len(bounds.MARK) + 24:
        head, _, tail = kept.partition(bounds.MARK)
        assert head and tail and whole.startswith(head) and whole.endswith(tail)


@given(LARGE, LARGE, LARGE)
def test_a_failure_fits(kind, message, traceback):
    made = bounds.failure(kind, message, traceback)
    assert size(made) <= bounds.FAILURE_BYTES_MAX


@given(LARGE)
def test_a_content_type_fits(value):
    assert bounds.text_bytes(bounds.content_type(value)) <= bounds.CONTENT_TYPE_BYTES_MAX


@given(st.lists(st.tuples(ANY, ANY), max_size=20), ANY, ANY)
def test_http_is_measured_from_above(headers, path, query):
    headers = tuple((_utf8(name), _utf8(value)) for name, value in headers)
    http = HttpRequest(method="GET", path=_utf8(path), query=_utf8(query), headers=headers)
    assert size(http) <= bounds.http_bytes(http) <= size(http) + 40


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def largest_call(fill: str, **fields) -> Call:
    room = bounds.HTTP_REQUEST_BYTES_MAX - bounds.http_bytes(HttpRequest(method="DELETE", path="/", query="", headers=()))
    http = HttpRequest(method="DELETE", path="/", query=_filling(fill, room), headers=())
    assert bounds.http_bytes(http) <= bounds.HTTP_REQUEST_BYTES_MAX
    name = "n" * 63
    values = {
        "job": f"{name}-{'0' * 26}", "tenant": "t" * 63, "function": name, "version": 10**9, "lane": Lane.ASYNC,
        "gateway": "gateway-1-0a1b2c3d", "submitted_at": NOW, "http": http, "attempt": 100, "placement": 100, "losses": 100,
        "input": Body(content_type="c" * bounds.CONTENT_TYPE_BYTES_MAX, size=2**30, object="o" * 150), "depth": 16,
        "parent": f"{name}-{'0' * 26}", "replay_of": f"{name}-{'0' * 26}", "caller": "hearth_12345678",
    }  # fmt: skip
    return Call(**(values | fields))


def largest_run(call: Call) -> Run:
    return Run(call=call, executor="e" * 63 + "-0a1b2c3d", placement=100, epoch=10**12, is_last=True, placed_at=NOW,
        reason="assigned-warm")  # fmt: skip


def _ending(**fields) -> Ending:
    return Ending(
        start=Start.COLD, usage=Usage(wall_ms=1e9 / 7, cpu_ms=1e9 / 7, memory_peak_mb=1e6 / 7, bytes_in=2**40, bytes_out=2**40),
        timings=Timings(submitted_at=NOW, placed_at=NOW, accepted_at=NOW, started_at=NOW, finished_at=NOW,
            cold_ms={f"phase_number_{n}": 12345.678 for n in range(8)}),
        executor="e" * 63 + "-0a1b2c3d", attempt=100, placement=100, **fields,
    )  # fmt: skip


def largest_failure(fill: str) -> Ending:
    return _ending(state=State.FAILED, reason=Reason.REJECTED, failure=bounds.failure(fill * 9000, fill * 90000, fill * 90000))


def largest_success(fill: str) -> Ending:
    headers = (("x", _filling(fill, bounds.HTTP_HEADERS_BYTES_MAX - 12)),)
    assert bounds.pairs_bytes(headers) <= bounds.HTTP_HEADERS_BYTES_MAX
    outputs = tuple(
        Output(name=f"{n:0200}", size=2**30, sha256="0" * 64, content_type="c" * bounds.OUTPUT_TYPE_BYTES_MAX,
            object=f"{'n' * 63}-{'0' * 26}-100-100-out-{n}")
        for n in range(OUTPUTS_MAX)
    )  # fmt: skip
    assert sum(bounds.output_bytes(o.name, o.content_type, o.object) for o in outputs) <= bounds.OUTPUTS_BYTES_MAX
    return _ending(state=State.SUCCESS, result=Body(content_type="c" * 256, size=2**30, object="o" * 150), http_status=599,
        http_headers=headers, outputs=outputs)  # fmt: skip


def _filling(fill: str, bytes_max: int) -> str:
    fill = _utf8(fill)
    return fill * (bytes_max // bounds.text_bytes(fill))


def largest_record(call: Call, ending: Ending) -> Record:
    return Record(
        job=call.job, tenant=call.tenant, function=call.function, version=call.version, lane=call.lane, ending=ending,
        input=call.input, log=Body(content_type="text/plain", size=2**30, object="o" * 150), log_truncated=True, http=call.http,
        trace_id="0" * 32, persist=True, depth=16, parent=call.parent, replay_of=call.replay_of, recorded_at=time.time(), stated=True,
    )  # fmt: skip


def largest() -> list[tuple[str, object]]:
    found = []
    for fill in NASTY:
        call = largest_call(fill)
        run, failure = largest_run(call), largest_failure(fill)
        found += [
            ("run", run), ("record", largest_record(call, failure)), ("record", largest_record(call, largest_success(fill))),
            ("outcome", Outcome(run=run, kind=OutcomeKind.FAILED, ending=failure, note="n" * 500)),
            ("dead", Dead(call=call, ending=failure, attempts=100, at=NOW)),
        ]  # fmt: skip
    return found


def test_the_largest_metas_fit():
    for name, meta in largest():
        assert size(meta) <= bounds.META_BYTES_MAX, name


def test_the_sum():
    types = 2 * bounds.CONTENT_TYPE_BYTES_MAX
    success = bounds.HTTP_HEADERS_BYTES_MAX + bounds.OUTPUTS_BYTES_MAX
    total = bounds.BASE_BYTES_MAX + types + bounds.HTTP_REQUEST_BYTES_MAX + max(success, bounds.FAILURE_BYTES_MAX)
    assert total == 58.5 * 1024 <= bounds.META_BYTES_MAX


def test_what_is_stripped_is_small_and_still_says_how_it_ended():
    for fill in NASTY:
        call = largest_call(fill)
        ending = largest_failure(fill)
        left = bounds.stripped_record(largest_record(call, ending))
        assert (left.ending.state, left.ending.reason, left.http) == (ending.state, ending.reason, None)
        assert left.ending.failure.message
        assert size(left) < 5 * 1024
        assert size(bounds.stripped_call(call)) < 2 * 1024
