"""A million finished calls leave the broker small: records go when every store has them."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from tests.support.platform import Platform, client, started

from hearth_contracts import names, subjects
from hearth_contracts.calls import Body, Ending, Record
from hearth_contracts.enums import Lane, State
from hearth_kit.nats_bus import connect

pytestmark = [pytest.mark.platform, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(900)]

CALLS = 1_000_000
BROKER_MIB_MAX = 500


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError(pid)


async def test_a_million_finished_calls(data: Path) -> None:
    """Given a million final records, published as executors publish them, when the persister has stored them, then the broker
    stays under its bound and history still knows them."""
    with started(data) as platform:
        broker = platform.pid("broker")
        credentials = _executor_credentials(platform)
        async with connect(url=credentials["url"], instance=credentials["instance"], user=credentials["user"],
                           password=credentials["password"]) as bus:  # fmt: skip
            turns = asyncio.Semaphore(512)
            peak = 0.0

            async def finish(number: int) -> None:
                async with turns:
                    job = names.new_job("counted", time.time())
                    meta = Record(
                        job=job, tenant="default", function="counted", version=1, lane=Lane.SYNC,
                        ending=Ending(state=State.SUCCESS, result=Body(size=2)), input=Body(size=2), recorded_at=time.time(),
                    )  # fmt: skip
                    await bus.publish(subjects.record("default", job), b"{}{}", meta=meta, contract="record.v1", expect_last=0)

            for start in range(0, CALLS, 20_000):
                await asyncio.gather(*(finish(number) for number in range(start, start + 20_000)))
                peak = max(peak, resident_mib(broker))
        assert peak < BROKER_MIB_MAX, f"{peak:.0f} MiB"
        async with client(platform) as hearth:
            page = (await hearth.call("GET", "/v1/jobs?function=counted&limit=500")).json
            assert len(page["jobs"]) == 500
        assert resident_mib(broker) < BROKER_MIB_MAX


def _executor_credentials(platform: Platform) -> dict[str, str]:
    """What the platform gave its own executor."""
    status = platform.status()
    path = next((platform.data / "state" / "credentials").glob("executor-1-*.json"))
    content = json.loads(path.read_text())
    return {"url": status["broker"], "instance": path.stem, "user": content["user"], "password": content["password"]}
