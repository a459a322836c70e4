"""Rows of many clients: calls a second, what each cost, and how fast a full queue says so meanwhile."""

import asyncio
from dataclasses import dataclass
from typing import Final

from hearth_cli.bench.calls import failures
from hearth_cli.bench.row import Row, faults, percentile
from hearth_cli.bench.sources import HELLO, STAYS, Scale, fresh, unique
from hearth_cli.bench.target import Target

CLIENTS: Final = 200
SERVICES: Final = ("gateway", "scheduler", "executor", "persister", "broker")
#: Milliseconds of CPU a call: the edge, scheduling.
CPU_BUDGETS: Final = (("gateway", 0.08), ("scheduler", 0.06))
#: What a full function's queue holds.
DEPTH: Final = 4
#: The calls that fill it are cancelled; should that fail, they end by themselves.
STAYS_S_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class LoadGoal:
    """Calls a second and milliseconds."""

    per_s: float
    p99: float
    floor_per_s: float


async def throughput(target: Target, seconds: float, isolation: str, goal: LoadGoal | None = None, *, on: str = "") -> list[Row]:
    """200 clients, and what each process paid per call meanwhile."""
    name = fresh("load")
    await target.deploy(name, unique(HELLO), isolation=isolation)
    await target.load(name, clients=32, seconds=min(3.0, seconds / 2))
    before = {service: target.cpu_s(service) for service in SERVICES}
    seen = await target.load(name, clients=CLIENTS, seconds=seconds)
    spent = {service: target.cpu_s(service) - before[service] for service in SERVICES}
    calls = seen["statuses"].get("200", 0)
    rate, p99 = calls / seen["seconds"], percentile(seen["latencies_ms"], 0.99)
    failed = failures(seen)
    lost = await target.recorded(name, seen["jobs"], wait_s=60)
    await target.remove(name)
    whole = not failed and not lost
    rows = [
        Row(
            f"{on}{CLIENTS} clients, {isolation}: calls/s, p99",
            f"{rate:.0f}/s, {p99:.0f} ms",
            f"{goal.per_s:.0f}/s, {goal.p99:.0f} ms" if goal else "",
            (None if whole else False) if goal is None else whole and rate >= goal.per_s and p99 <= goal.p99,
            "241/s sustained, 520/s peak" if goal else "",
            {"per_s": rate, "p50_ms": percentile(seen["latencies_ms"], 0.5), "p99_ms": p99, "calls": calls, "failed": failed,
             "unrecorded": len(lost)},
            faults(failed, lost, seen["errors"]),
            f"{goal.floor_per_s:.0f}/s" if goal else "",
            rate >= goal.floor_per_s if goal else None,
        )
    ]  # fmt: skip
    if goal and target.processes and calls:
        each = {service: cpu_s / calls * 1000 for service, cpu_s in spent.items()}
        for service, budget in CPU_BUDGETS:
            others = ", ".join(f"{other} {each[other]:.3f}" for other in SERVICES if other != service)
            label = {"gateway": "edge (gateway)", "scheduler": "scheduling (scheduler)"}[service]
            rows.append(
                Row(f"CPU per call under that load, {isolation}: {label}", f"{each[service]:.3f} ms", f"{budget} ms",
                    each[service] <= budget, "", {"ms": each[service]}, f"ms of the others: {others}")
            )  # fmt: skip
    return rows


async def refusal(target: Target, scale: Scale) -> Row:
    """A full queue says so at once, also while 200 clients keep the platform busy with another function."""
    what = "refusal (429) under that load: p99"
    busy, full = fresh("busy"), fresh("full")
    await target.deploy(busy, unique(HELLO), isolation="reuse")
    await target.deploy(full, unique(STAYS), queue={"depth": DEPTH}, scale={"max": 1}, timeout_s=STAYS_S_MAX)
    held: list[str] = []
    try:
        await _fill(target, full, held)
        await target.load(busy, clients=32, seconds=1)
        loading = asyncio.create_task(target.load(busy, clients=CLIENTS, seconds=scale.load_s + 2), name="busy")
        try:
            await asyncio.sleep(1)  # the load is up when the refusals are timed, and still when they end
            seen = await target.load(full, clients=4, seconds=scale.load_s)
            others = await loading
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
    finally:
        for job in held:
            await target.cancel(job)
        await target.remove(full)
        await target.remove(busy)
    refused: list[float] = seen["refused_ms"]
    taken = failures(seen) - len(refused) + seen["statuses"].get("200", 0)
    p99 = percentile(refused, 0.99)
    failed = failures(others)
    return Row(
        what, f"{p99:.1f} ms", "10 ms", p99 <= 10 and not taken and not failed, "150 ms",
        {"p50_ms": percentile(refused, 0.5), "p99_ms": p99, "refused": len(refused), "load_per_s": len(others["jobs"]) / others["seconds"]},
        f"{taken} of these calls were not refused" if taken else faults(failed, (), others["errors"]),
    )  # fmt: skip


async def _fill(target: Target, name: str, held: list[str]) -> None:
    """Submit calls that stay until the queue is full."""
    async with asyncio.timeout(60):
        while True:
            _, status, headers, _ = await target.timed(
                "POST", f"/v1/functions/{name}/invoke", json={}, headers={"prefer": "respond-async"}
            )
            if status == 429:
                return
            if status != 202:
                raise RuntimeError(f"a call of a function that stays was answered with {status}")
            held.append(headers["x-hearth-job"])
            await asyncio.sleep(0.15)  # the depth is what the scheduler counted, told each 100 ms
