"""What tracing costs: two platforms side by side, one that samples as shipped and one that does not, driven in turn.

The speed of a machine that is shared changes by more than what is looked for, within minutes. So both are driven in short
slices, one right after the other, and each pair is compared by itself: what slows the machine slows both of a pair.
"""

import asyncio
import statistics
from collections.abc import Sequence
from typing import Final

from hearth_cli.bench.calls import failures
from hearth_cli.bench.row import Row, median_interval
from hearth_cli.bench.sources import HELLO, Scale, fresh, unique
from hearth_cli.bench.target import Target

WHAT: Final = "tracing at shipped sampling: throughput lost"
BUDGET_PERCENT: Final = 5.0
#: Enough to keep two processors busy.
CLIENTS: Final = 64
#: Fewer say nothing of where their median lies.
PAIRS_MIN: Final = 6
#: In front of each slice, not counted: the traces that were saved up while the other one was driven are taken in it.
LEAD_S: Final = 0.2


async def tracing(on: Target, off: Target, scale: Scale, until: float) -> Row:
    """Calls a second with tracing against without, pair by pair; `until` (loop time) no more pairs than are needed."""
    loop = asyncio.get_running_loop()
    names: dict[Target, str] = {}
    for target in (on, off):
        names[target] = fresh("traced")
        await target.deploy(names[target], unique(HELLO), isolation="reuse")
        await target.load(names[target], clients=CLIENTS, seconds=2)
    rates: dict[Target, list[float]] = {on: [], off: []}
    spent: dict[Target, float] = {on: -on.cpu_s(""), off: -off.cpu_s("")}
    calls: dict[Target, int] = {on: 0, off: 0}
    failed = 0
    for pair in range(scale.pairs):
        if pair >= PAIRS_MIN and loop.time() > until:
            break
        # Who goes first alternates: a machine that grows slower would else always favour the same one.
        for target in (on, off) if pair % 2 else (off, on):
            seen = await target.load(names[target], clients=CLIENTS, seconds=scale.slice_s, lead_s=LEAD_S)
            rates[target].append(seen["statuses"].get("200", 0) / seen["seconds"])
            calls[target] += seen["statuses"].get("200", 0)
            failed += failures(seen)
    for target in (on, off):
        spent[target] += target.cpu_s("")
        await target.remove(names[target])
    cpu_ms = {target: spent[target] / calls[target] * 1000 if calls[target] else float("nan") for target in (on, off)}
    return judged(rates[on], rates[off], cpu_on_ms=cpu_ms[on], cpu_off_ms=cpu_ms[off], failed=failed)


def judged(on: Sequence[float], off: Sequence[float], *, cpu_on_ms: float, cpu_off_ms: float, failed: int) -> Row:
    """The row from the rates of each pair. Neither met nor missed where the pairs differ too much to tell."""
    lost = [(1 - with_it / without) * 100 for with_it, without in zip(on, off, strict=True) if without]
    if not lost or failed:
        return Row(WHAT, "failed", f"{BUDGET_PERCENT:g} %", False, note=f"{failed} calls failed")
    cost = statistics.median(lost)
    low, high = median_interval(lost)
    ok = True if high <= BUDGET_PERCENT else False if low > BUDGET_PERCENT else None
    return Row(
        WHAT, f"{cost:.1f} %", f"{BUDGET_PERCENT:g} %", ok, "",
        {"percent": cost, "low_percent": low, "high_percent": high, "pairs": len(lost), "cpu_on_ms": cpu_on_ms,
         "cpu_off_ms": cpu_off_ms, "on_per_s": statistics.median(on), "off_per_s": statistics.median(off)},
        f"median of {len(lost)} pairs, between {low:.1f} and {high:.1f} % nine times of ten; "
        f"CPU of all services {cpu_on_ms:.3f} against {cpu_off_ms:.3f} ms a call",
    )  # fmt: skip
