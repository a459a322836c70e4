"""Rows of memory: the idle platform, and what a large body adds to those who carry it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from hearth_cli.bench.calls import pool_full
from hearth_cli.bench.row import Row
from hearth_cli.bench.sources import LARGE, MIB, WRITES, Scale, fresh, unique
from hearth_cli.bench.target import Target

#: A platform that has just started still settles; the highest of the readings in this time counts.
IDLE_S: Final = 3.0
_CARRIERS: Final = ("executor", "gateway", "persister", "broker")


async def idle(target: Target, scale: Scale) -> Row:
    """Before any load. Pages that processes share are counted once over all who share them."""
    await pool_full(target)
    loop = asyncio.get_running_loop()
    until, highest, each = loop.time() + IDLE_S, 0.0, dict[str, float]()
    while loop.time() < until:
        now = {process.name: target.memory_mib(process.name) for process in target.processes}
        if sum(now.values()) > highest:
            highest, each = sum(now.values()), now
        await asyncio.sleep(0.25)
    return Row(
        "idle platform, all services and the broker", f"{highest:.0f} MiB", "350 MiB", highest <= 350, "1 GiB machines",
        {"mib": highest}, ", ".join(f"{name} {mib:.0f}" for name, mib in each.items()),
    )  # fmt: skip


async def large_output(target: Target, scale: Scale) -> Row:
    """An output file, downloaded."""

    async def call(name: str, mib: int) -> tuple[int, str, int]:
        _, status, headers, _ = await target.timed("POST", f"/v1/functions/{name}/invoke", json={"mib": mib})
        job = headers.get("x-hearth-job", "")
        if status != 200:
            return status, job, 0
        _, status, _, size = await target.timed("GET", f"/v1/jobs/{job}/outputs/large.bin")
        return status, job, size

    return await _large(target, scale, "output file", WRITES, call)


async def large_result(target: Target, scale: Scale) -> Row:
    """A result that is streamed to the caller."""

    async def call(name: str, mib: int) -> tuple[int, str, int]:
        _, status, headers, size = await target.timed("POST", f"/v1/functions/{name}/invoke", json={"mib": mib})
        return status, headers.get("x-hearth-job", ""), size

    return await _large(target, scale, "result", LARGE, call)


async def _large(
    target: Target, scale: Scale, kind: str, source: str, call: Callable[[str, int], Awaitable[tuple[int, str, int]]]
) -> Row:
    """What it adds to the highest memory of those who carry it, from the call until the stores have it."""
    name, mib = fresh("body"), scale.large_mib
    await target.deploy(name, unique(source), memory_mb=128, timeout_s=600)
    await call(name, 1)
    before = target.forget_peaks()
    started = asyncio.get_running_loop().time()
    status, job, size = await call(name, mib)
    took_s = asyncio.get_running_loop().time() - started
    lost = await target.recorded(name, [job], wait_s=120)
    highest = target.peaks_mib()
    await target.remove(name)
    grown = {
        carrier: max((highest[one] - before[one] for one in before if one.startswith(carrier)), default=0.0)
        for carrier in _CARRIERS
    }
    whole = status == 200 and size == mib * MIB and not lost
    others = f"persister {grown['persister']:.0f}, broker {grown['broker']:.0f} MiB; {mib / took_s:.0f} MiB/s to the caller"
    return Row(
        f"a {'1 GiB' if mib == 1024 else f'{mib} MiB'} {kind}: memory grows, executor / gateway",
        f"{grown['executor']:.0f} / {grown['gateway']:.0f} MiB", "16 / 32 MiB",
        whole and grown["executor"] <= 16 and grown["gateway"] <= 32, '"zero"',
        {**{f"{carrier}_mib": value for carrier, value in grown.items()}, "seconds": took_s},
        others if whole else f"answered {status} with {size} bytes" + (", without a record" if lost else ""),
    )  # fmt: skip
