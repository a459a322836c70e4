"""Rows of one client on a quiet platform: warm calls, first calls, and the reading of a container's figures."""

import asyncio
import io
import os
import statistics
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from hearth_cli.bench.row import Row, faults, percentile
from hearth_cli.bench.sources import HELLO, Scale, fresh, unique
from hearth_cli.bench.target import Target


@dataclass(frozen=True, slots=True)
class WarmGoal:
    """Milliseconds of a warm call."""

    p50: float
    p99: float
    floor_p50: float | None = None


async def warm(target: Target, scale: Scale, isolation: str, goal: WarmGoal | None = None, *, on: str = "") -> Row:
    """`on` names the platform where it is not the usual one: such a row has no budget of its own."""
    name = fresh("warm")
    await target.deploy(name, unique(HELLO), isolation=isolation)
    await target.load(name, clients=1, requests=50)
    seen = await target.load(name, clients=1, requests=scale.beside_calls if on else scale.calls, seconds=scale.calls_s)
    p50, p99 = percentile(seen["latencies_ms"], 0.5), percentile(seen["latencies_ms"], 0.99)
    failed = failures(seen)
    lost = await target.recorded(name, seen["jobs"])
    await target.remove(name)
    whole = not failed and not lost
    cold = seen["starts"].get("cold", 0)
    return Row(
        f"{on}warm call, one client, {isolation}: p50 / p99",
        f"{p50:.2f} / {p99:.2f} ms",
        f"{goal.p50:g} / {goal.p99:g} ms" if goal else "",
        (None if whole else False) if goal is None else whole and p50 <= goal.p50 and p99 <= goal.p99,
        "91 ms" if goal else "",
        {"p50_ms": p50, "p99_ms": p99, "calls": len(seen["latencies_ms"]), "failed": failed, "unrecorded": len(lost), "cold": cold},
        faults(failed, lost, seen["errors"]) or (f"{cold} of these calls were cold" if cold else ""),
        f"{goal.floor_p50:g} ms" if goal and goal.floor_p50 else "",
        p50 <= goal.floor_p50 if goal and goal.floor_p50 else None,
    )  # fmt: skip


async def cold(target: Target, scale: Scale) -> Row:
    async def deploy() -> str:
        name = fresh("cold")
        await target.deploy(name, unique(HELLO))
        return name

    what = "first call of a new Python function, generic pool full: p50"
    return await _first_calls(target, deploy, count=scale.cold, what=what, goal_ms=20, earlier="120-200 ms", digits=1)


async def cold_large(target: Target, scale: Scale) -> Row:
    """A bundle of 49 MB packed that hardly compresses, new each time."""

    async def deploy() -> str:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as bundle:
            bundle.writestr("main.py", unique(HELLO))
            bundle.writestr("data.bin", os.urandom(49 * 1000 * 1000))
        name = fresh("large")
        await target.deploy_bundle(name, packed.getvalue(), memory_mb=256)
        return name

    what = "first call with a 50 MB bundle: p50"
    return await _first_calls(target, deploy, count=max(3, scale.cold // 5), what=what, goal_ms=300, earlier="", digits=0)


async def _first_calls(
    target: Target, deploy: Callable[[], Awaitable[str]], *, count: int, what: str, goal_ms: float, earlier: str, digits: int
) -> Row:
    """The first call of so many functions that nobody has seen before."""
    took: list[float] = []
    starts: list[str] = []
    for _ in range(count):
        name = await deploy()
        await pool_full(target)
        ms, status, headers, _ = await target.timed("POST", f"/v1/functions/{name}/invoke", json={})
        if status != 200:
            return Row(what, f"answered {status}", f"{goal_ms:g} ms", False, earlier)
        took.append(ms)
        starts.append(headers.get("x-hearth-start", ""))
        await target.remove(name)
    p50 = statistics.median(took)
    was_cold = starts.count("cold") == len(starts)
    return Row(
        what, f"{p50:.{digits}f} ms", f"{goal_ms:g} ms", p50 <= goal_ms and was_cold, earlier,
        {"p50_ms": p50, "highest_ms": max(took), "calls": len(took)}, "" if was_cold else "some of these calls were not cold",
    )  # fmt: skip


async def cgroup_read(target: Target, scale: Scale) -> Row:
    """Told by the executors themselves, who measure it on their first container."""
    told = [
        float(executor["backend_notes"]["cgroup_read_us"])
        for executor in await executors(target)
        if "cgroup_read_us" in executor.get("backend_notes", {})
    ]
    if not told:
        return Row(
            "reading a container's memory and CPU", "not told", "15 us", False, "15.5 us", note="no executor can read them"
        )
    us = max(told)
    return Row("reading a container's memory and CPU", f"{us:.1f} us", "15 us", us <= 15, "15.5 us", {"us": us})


async def executors(target: Target) -> list[dict[str, Any]]:
    system = await target.json("GET", "/v1/system")
    found: list[dict[str, Any]] = system.get("executors", [])
    return found


async def pool_full(target: Target) -> None:
    """Wait until the generic pool is back at its size, as the budget says: until it has not grown for a moment."""
    async with asyncio.timeout(30):
        before, since = -1, 0.0
        loop = asyncio.get_running_loop()
        while True:
            count = sum(sum(executor.get("generic", {}).values()) for executor in await executors(target))
            if count != before:
                before, since = count, loop.time()
            elif count and loop.time() - since >= 0.5:
                return
            await asyncio.sleep(0.05)


def failures(seen: dict[str, Any]) -> int:
    """Of a load: what was not answered with 200, or not at all."""
    return seen["broken"] + sum(count for status, count in seen["statuses"].items() if status != "200")
