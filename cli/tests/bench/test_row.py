"""The arithmetic of the table, and what it says of a row."""

import math
import random
import statistics

import pytest

from hearth_cli.bench import tracing
from hearth_cli.bench.row import Row, median_interval, percentile


def test_a_percentile_is_a_value_that_was_measured() -> None:
    hundred = [float(n) for n in range(1, 101)]
    random.Random(1).shuffle(hundred)
    assert (percentile(hundred, 0.5), percentile(hundred, 0.99), percentile(hundred, 1)) == (50, 99, 100)
    assert percentile([7.0], 0.99) == 7
    assert percentile([1.0, 9.0], 0.99) == 9
    assert math.isnan(percentile([], 0.5))


def test_no_figure_of_nothing_is_ever_within_a_budget() -> None:
    assert not percentile([], 0.99) <= 10


@pytest.mark.parametrize("n", [8, 12, 30])
def test_the_interval_holds_the_median_nine_times_of_ten(n: int) -> None:
    """Given values drawn around a known median, skewed as times are, then the interval holds it as often as it says."""
    chance = random.Random(n)
    held = 0
    for _ in range(2000):
        low, high = median_interval([chance.lognormvariate(0, 1) for _ in range(n)])  # its median is 1
        held += low <= 1 <= high
    assert 0.88 < held / 2000 < 0.99


def test_few_values_tell_nothing_of_the_median() -> None:
    assert median_interval([1.0, 2.0, 3.0]) == (-math.inf, math.inf)


def test_a_row_says_met_missed_unsure_or_nothing() -> None:
    assert Row("a", "1", "2", True).verdict == "met"
    assert Row("a", "3", "2", False).verdict == "MISSED"
    assert Row("a", "1 to 3", "2", None).verdict == "unsure"
    assert Row("a", "1").verdict == ""
    assert Row("a", "failed", "", False).verdict == "MISSED"
    assert Row("a", "1", "2", True, floor="3", above_floor=True).floor_verdict == "3 met"
    assert Row("a", "4", "2", False, floor="3", above_floor=False).floor_verdict == "3 MISSED"


def pairs(cost_percent: float, noise: float, *, seed: int = 3) -> tuple[list[float], list[float]]:
    """Rates of a machine whose speed halves and doubles from pair to pair, and wobbles within one."""
    chance = random.Random(seed)
    on, off = [], []
    for _ in range(30):
        speed = chance.choice([500, 1000, 2000])
        off.append(speed * (1 + chance.uniform(-noise, noise)))
        on.append(speed * (1 - cost_percent / 100) * (1 + chance.uniform(-noise, noise)))
    return on, off


@pytest.mark.parametrize(("cost", "noise", "ok"), [(1, 0.02, True), (12, 0.02, False), (4.5, 0.3, None)])
def test_tracing_is_judged_pair_by_pair(cost: float, noise: float, ok: bool | None) -> None:
    """A machine that changes its speed fourfold hides nothing; one that wobbles within a pair leaves it open."""
    on, off = pairs(cost, noise)
    row = tracing.judged(on, off, cpu_on_ms=1, cpu_off_ms=1, failed=0)
    assert row.ok is ok, row
    if ok is not None:
        assert row.figures["percent"] == pytest.approx(cost, abs=1.5)
        assert row.figures["low_percent"] <= statistics.median([100 * (1 - a / b) for a, b in zip(on, off, strict=True)])


def test_tracing_that_made_calls_fail_is_not_met() -> None:
    on, off = pairs(0, 0.01)
    assert tracing.judged(on, off, cpu_on_ms=1, cpu_off_ms=1, failed=3).ok is False
    assert tracing.judged([], [], cpu_on_ms=1, cpu_off_ms=1, failed=0).ok is False
