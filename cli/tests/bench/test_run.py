"""A run: what it measures where, what it leaves out and says so, and what it prints."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hearth_cli.bench import rows
from hearth_cli.bench.row import LeftOut, Row
from hearth_cli.bench.rows import Step
from hearth_cli.bench.run import Bench, Place
from hearth_cli.bench.sources import Scale
from hearth_cli.bench.target import Process, Target

NOWHERE = Place("http://127.0.0.1:1", "no-key")


def step(label: str, row: Row | Exception, *, here: bool = False, here_too: str = "") -> Step:
    async def measure(target: Target, scale: Scale) -> Row:
        if isinstance(row, Exception):
            raise row
        return row

    return Step(label, measure, here=here, here_too=here_too)


def test_what_needs_the_processes_is_left_out_elsewhere_with_the_reason() -> None:
    steps = [step("memory", Row("memory", "1"), here=True), step("calls", Row("calls", "2"), here_too="CPU per call")]
    bench = Bench(quick=True)
    bench.measure(NOWHERE, steps)
    assert [row.what for row in bench.rows] == ["calls"]
    why = "the platform's processes are not on this machine"
    assert bench.left_out == [LeftOut("memory", why), LeftOut("CPU per call", why)]
    assert f"not in the table: memory ({why})" in bench.as_table(styled=False)


def test_on_this_machine_nothing_is_left_out() -> None:
    bench = Bench(quick=True)
    place = Place(NOWHERE.url, NOWHERE.key, (Process("gateway-1", os.getpid()),))
    bench.measure(place, [step("memory", Row("memory", "1"), here=True), step("calls", Row("calls", "2"), here_too="CPU")])
    assert ([row.what for row in bench.rows], bench.left_out) == (["memory", "calls"], [])


def test_a_step_that_fails_is_a_missed_row_and_the_others_go_on() -> None:
    bench = Bench(quick=True)
    bench.measure(NOWHERE, [step("first", RuntimeError("the load generator failed")), step("second", Row("second", "1"))])
    first, second = bench.rows
    assert (first.ok, first.note, second.what) == (False, "RuntimeError: the load generator failed", "second")
    assert not bench.met


def test_rows_without_a_budget_and_open_ones_miss_none() -> None:
    bench = Bench(quick=True)
    bench.measure(NOWHERE, [step("a", Row("a", "1")), step("b", Row("b", "1", "2", None)), step("c", Row("c", "1", "2", True))])
    assert bench.met


def test_table_and_json_say_the_same() -> None:
    bench = Bench(quick=True)
    row = Row(
        "warm [calls]", "2.50 ms", "2 ms", False, "91 ms", {"p50_ms": 2.5, "p99_ms": float("nan")}, "why [so]", "3 ms", True
    )
    bench.measure(NOWHERE, [step("warm", row)])
    bench.leave_out(rows.ELSEWHERE)
    table, told = bench.as_table(styled=False), json.loads(bench.as_json())
    line = next(line for line in table.splitlines() if "2.50 ms" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["warm [calls]", "2.50 ms", "2 ms", "MISSED", "3 ms met", "91 ms"]
    assert "why [so]" in table
    assert told["rows"][0] | {"what": "warm [calls]", "verdict": "MISSED", "above_floor": True} == told["rows"][0]
    assert told["rows"][0]["figures"] == {"p50_ms": 2.5, "p99_ms": None}
    assert told["quick"] is True
    assert {one["what"] for one in told["left_out"]} == {one.what for one in rows.ELSEWHERE}


def test_the_test_that_a_row_names_is_there() -> None:
    named = rows.CRASHES.note.split()[-1]
    assert (Path(__file__).parents[3] / named).is_file()


def test_memory_is_read_before_anything_is_called() -> None:
    assert rows.MAIN[0].label == "idle memory"


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that takes 80 MiB when told, gives them back, and then uses the processor."""
    script = (
        "import sys, time\n"
        "sys.stdin.readline(); block = bytearray(80 << 20); block[::4096] = b'x' * (80 << 8); del block\n"
        "print('done', flush=True)\n"
        "sys.stdin.readline()\n"
        "until = time.process_time() + 0.3\n"
        "while time.process_time() < until: pass\n"
        "print('done', flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_memory_that_was_given_back_again_still_counts(child: "subprocess.Popen[bytes]") -> None:
    """A reading afterwards would see nothing of it; nor does an earlier peak count twice."""
    assert child.stdin is not None and child.stdout is not None
    target = Target(url="http://127.0.0.1:1", key="", processes=[Process("executor-1", child.pid)])
    before = target.forget_peaks()["executor-1"]
    child.stdin.write(b"\n")
    child.stdin.flush()
    child.stdout.readline()
    assert target.memory_mib("executor") < before + 40
    assert 75 < target.peaks_mib()["executor-1"] - before < 100
    again = target.forget_peaks()["executor-1"]
    assert target.peaks_mib()["executor-1"] - again < 5


def test_processor_time_is_of_the_processes_asked_for(child: "subprocess.Popen[bytes]") -> None:
    assert child.stdin is not None and child.stdout is not None
    target = Target(url="http://127.0.0.1:1", key="", processes=[Process("executor-1", child.pid)])
    before = target.cpu_s("executor")
    child.stdin.write(b"\n\n")
    child.stdin.flush()
    child.stdout.readline()
    child.stdout.readline()
    assert 0.25 < target.cpu_s("executor") - before < 1.5
    assert target.cpu_s("gateway") == 0
