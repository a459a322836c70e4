"""The rows of the table: each measures one budget on a running platform."""

import io
import os
import secrets
import statistics
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hearth_cli.bench.target import Target

HELLO: Final = "def handle(event, context):\n    return {'hello': event.get('name', 'world')}\n"
LARGE: Final = "def handle(event, context):\n    return b'x' * (int(event['mib']) * 1024 * 1024)\n"
SLOW: Final = "import time\n\ndef handle(event, context):\n    time.sleep(0.2)\n    return 1\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured line. `floor` is the value below (or above) which the work is not done."""

    what: str
    value: str
    budget: str
    ok: bool
    earlier: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are at or below; not a number when there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def fresh(name: str) -> str:
    return f"bench-{name}-{secrets.token_hex(3)}"


def unique(source: str) -> str:
    """The same function under a digest that was never seen: nothing can have cached it."""
    return f"# {secrets.token_hex(8)}\n{source}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How long each row measures."""

    calls: int
    cold: int
    load_s: float
    large_mib: int


QUICK: Final = Scale(calls=400, cold=12, load_s=6, large_mib=64)
FULL: Final = Scale(calls=3000, cold=60, load_s=20, large_mib=256)


async def warm(target: Target, scale: Scale, isolation: str, budgets: tuple[float, float], earlier: str) -> Row:
    name = fresh("warm")
    await target.deploy(name, unique(HELLO), isolation=isolation)
    await target.load(name, clients=1, requests=50)
    seen = await target.load(name, clients=1, requests=scale.calls)
    p50, p99 = percentile(seen["latencies_ms"], 0.5), percentile(seen["latencies_ms"], 0.99)
    failed = sum(count for status, count in seen["statuses"].items() if status != "200")
    lost = await target.recorded(name, seen["jobs"])
    await target.remove(name)
    ok = p50 <= budgets[0] and p99 <= budgets[1] and not failed and not lost
    return Row(
        f"warm call, one client, {isolation}: p50 / p99", f"{p50:.2f} / {p99:.2f} ms", f"{budgets[0]} / {budgets[1]} ms", ok, earlier,
        {"p50_ms": p50, "p99_ms": p99, "failed": failed, "unrecorded": len(lost)}, _faults(failed, lost, seen["errors"]),
    )  # fmt: skip


async def cold(target: Target, scale: Scale) -> Row:
    took: list[float] = []
    starts: list[str] = []
    for _ in range(scale.cold):
        name = fresh("cold")
        await target.deploy(name, unique(HELLO))
        await _pool_full(target)
        ms, status, headers, _ = await target.timed("POST", f"/v1/functions/{name}/invoke", json={})
        if status != 200:
            return Row("first call of a new function: p50", f"answered {status}", "20 ms", False, "120-200 ms")
        took.append(ms)
        starts.append(headers.get("x-hearth-start", ""))
        await target.remove(name)
    p50 = statistics.median(took)
    was_cold = starts.count("cold") == len(starts)
    return Row(
        "first call of a new Python function, generic pool full: p50", f"{p50:.1f} ms", "20 ms", p50 <= 20 and was_cold, "120-200 ms",
        {"p50_ms": p50, "p99_ms": percentile(took, 0.99)}, "" if was_cold else "some of these calls were not cold",
    )  # fmt: skip


async def cold_large(target: Target, scale: Scale) -> Row:
    """A bundle of 49 MB packed that hardly compresses, new each time."""
    took: list[float] = []
    for _ in range(3):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as bundle:
            bundle.writestr("main.py", unique(HELLO))
            bundle.writestr("data.bin", os.urandom(49 * 1000 * 1000))
        name = fresh("large")
        await target.deploy_bundle(name, packed.getvalue(), memory_mb=256)
        await _pool_full(target)
        ms, status, _, _ = await target.timed("POST", f"/v1/functions/{name}/invoke", json={})
        if status != 200:
            return Row("first call with a 50 MB bundle: p50", f"answered {status}", "300 ms", False)
        took.append(ms)
        await target.remove(name)
    p50 = statistics.median(took)
    return Row("first call with a 50 MB bundle: p50", f"{p50:.0f} ms", "300 ms", p50 <= 300, "", {"p50_ms": p50})


async def throughput(target: Target, scale: Scale, isolation: str, budget: tuple[float, float], floor: float) -> list[Row]:
    """200 clients, and what each process paid per call meanwhile."""
    name = fresh("load")
    await target.deploy(name, unique(HELLO), isolation=isolation)
    await target.load(name, clients=32, seconds=min(3.0, scale.load_s / 2))
    names = ("gateway", "scheduler", "executor", "persister", "broker")
    before = {service: target.cpu_s(service) for service in names}
    seen = await target.load(name, clients=200, seconds=scale.load_s)
    spent = {service: target.cpu_s(service) - before[service] for service in names}
    calls = len(seen["latencies_ms"])
    rate, p99 = calls / seen["seconds"], percentile(seen["latencies_ms"], 0.99)
    failed = sum(count for status, count in seen["statuses"].items() if status != "200")
    lost = await target.recorded(name, seen["jobs"], wait_s=60)
    await target.remove(name)
    ok = rate >= budget[0] and p99 <= budget[1] and not failed and not lost
    rows = [
        Row(
            f"200 clients, {isolation}: calls/s, p99", f"{rate:.0f}/s, {p99:.0f} ms", f"{budget[0]:.0f}/s, {budget[1]:.0f} ms", ok,
            "241/s sustained, 520/s peak",
            {"per_s": rate, "p50_ms": percentile(seen["latencies_ms"], 0.5), "p99_ms": p99, "failed": failed, "unrecorded": len(lost),
             "floor_per_s": floor},
            _faults(failed, lost, seen["errors"]) or ("" if rate >= floor else f"below the floor of {floor:.0f}/s"),
        )
    ]  # fmt: skip
    if target.processes and calls:
        for service, budget_ms in (("gateway", 0.08), ("scheduler", 0.06)):
            each = spent[service] / calls * 1000
            rows.append(
                Row(f"CPU per call, {service} ({isolation})", f"{each:.3f} ms", f"{budget_ms} ms", each <= budget_ms, "",
                    {"ms": each}, ", ".join(f"{other} {spent[other] / calls * 1000:.3f}" for other in names if other != service))
            )  # fmt: skip
    return rows


async def refusal(target: Target, scale: Scale) -> Row:
    """A full queue says so at once, also while the platform is loaded."""
    name = fresh("full")
    await target.deploy(name, unique(SLOW), queue={"depth": 4}, scale={"max": 2})
    await target.timed("POST", f"/v1/functions/{name}/invoke", json={})
    seen = await target.load(name, clients=200, seconds=min(5.0, scale.load_s))
    await target.remove(name)
    p99 = percentile(seen["refused_ms"], 0.99)
    return Row("refusal (429) under load: p99", f"{p99:.1f} ms", "10 ms", p99 <= 10, "150 ms",
               {"p99_ms": p99, "refused": len(seen["refused_ms"])})  # fmt: skip


async def large_body(target: Target, scale: Scale) -> list[Row]:
    """A large result: what it adds to the memory of those who carry it."""
    if not target.processes:
        return []
    name = fresh("body")
    mib = scale.large_mib
    await target.deploy(name, unique(LARGE), memory_mb=max(512, mib * 3), timeout_s=120)
    await target.timed("POST", f"/v1/functions/{name}/invoke", json={"mib": 1})
    services = ("executor", "gateway", "persister")
    before = {service: target.resident_mib(service) for service in services}
    ms, status, _, size = await target.timed("POST", f"/v1/functions/{name}/invoke", json={"mib": mib})
    grown = {service: target.resident_mib(service) - before[service] for service in services}
    await target.remove(name)
    whole = status == 200 and size == mib * 1024 * 1024
    ok = whole and grown["executor"] <= 16 and grown["gateway"] <= 32
    return [
        Row(f"a {mib} MiB result: memory grows, executor / gateway", f"{grown['executor']:.0f} / {grown['gateway']:.0f} MiB", "16 / 32 MiB",
            ok, '"zero"', {**{f"{k}_mib": v for k, v in grown.items()}, "ms": ms}, "" if whole else f"answered {status} with {size} bytes")
    ]  # fmt: skip


async def idle(target: Target, scale: Scale) -> list[Row]:
    if not target.processes:
        return []
    memory = target.memory_mib()
    each = {process.name: round(target.memory_mib(process.name)) for process in target.processes}
    return [
        Row("idle platform, all services and the broker", f"{memory:.0f} MiB", "350 MiB", memory <= 350, "1 GiB machines",
            {"mib": memory}, ", ".join(f"{name} {mib}" for name, mib in each.items()))
    ]  # fmt: skip


async def cgroup_read(target: Target, scale: Scale) -> list[Row]:
    """Told by the executors themselves, who measure it at start."""
    system = await target.json("GET", "/v1/system")
    told = [
        float(executor["backend_notes"]["cgroup_read_us"])
        for executor in system.get("executors", [])
        if "cgroup_read_us" in executor.get("backend_notes", {})
    ]
    if not told:
        return []
    us = statistics.median(told)
    return [Row("reading a sandbox's memory and CPU", f"{us:.1f} us", "15 us", us <= 15, "15.5 us", {"us": us})]


async def _pool_full(target: Target) -> None:
    """Wait until the generic pool is back at its size, as the budget says."""
    import asyncio

    async with asyncio.timeout(30):
        while True:
            system = await target.json("GET", "/v1/system")
            pools = [executor.get("generic", {}) for executor in system.get("executors", [])]
            if any(count >= 1 for pool in pools for count in pool.values()):
                return
            await asyncio.sleep(0.05)


def _faults(failed: int, lost: Sequence[str], errors: Sequence[str]) -> str:
    parts: list[str] = []
    if failed:
        parts.append(f"{failed} calls failed: {errors[0][:200] if errors else ''}")
    if lost:
        parts.append(f"{len(lost)} answered calls without a record, such as {lost[0]}")
    return "; ".join(parts)


Measure = Callable[[Target, Scale], Awaitable[Row | list[Row]]]


def plan(scale: Scale) -> list[tuple[str, Measure]]:
    """What is measured, in order: quiet rows first."""
    return [
        ("idle memory", idle),
        ("cgroup readings", cgroup_read),
        ("warm calls, process", lambda t, s: warm(t, s, "process", (2, 8), "91 ms")),
        ("warm calls, reuse", lambda t, s: warm(t, s, "reuse", (1.2, 5), "91 ms")),
        ("first calls", cold),
        ("first calls of a large bundle", cold_large),
        ("200 clients, reuse", lambda t, s: throughput(t, s, "reuse", (3000, 250), 1500)),
        ("200 clients, process", lambda t, s: throughput(t, s, "process", (900, 500), 600)),
        ("refusals", refusal),
        ("a large result", large_body),
    ]
