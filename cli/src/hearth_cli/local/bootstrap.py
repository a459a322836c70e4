"""Make the streams of a new platform: `python -m hearth_cli.local.bootstrap DIR`, run by the supervisor and then gone.

A file stream that was made once and is missing now is never made again in silence: what it held is lost, and somebody
must know (the services say so in /readyz, `hearth doctor --fix --remake NAME` mends it).
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from hearth_cli.local.broker_users import BOOTSTRAP, BrokerUsers
from hearth_cli.local.data_dir import DataDir, read_json, write_private
from hearth_cli.local.plan import Plan
from hearth_contracts import streams
from hearth_kit import nats_bus, provision


def wanted(replicas: int) -> dict[str, Any]:
    """The settings of every stream, by name, as this release wants them."""
    return {stream.name: stream.config(replicas=replicas) for stream in streams.STREAMS}


def due(data: DataDir, replicas: int) -> bool:
    """Whether anything is to be made or changed."""
    return bool(read_json(data.made_streams) != wanted(replicas))


def select(made: dict[str, Any], present: set[str]) -> tuple[streams.Stream, ...]:
    """The streams to make or bring up to date: all but those that were made before and are gone."""
    return tuple(
        stream for stream in streams.STREAMS if stream.storage == "memory" or stream.name in present or stream.name not in made
    )


async def bootstrap(plan: Plan, *, remake: str = "") -> None:
    """Bring the streams to what this release wants; `remake` names one that may be made anew."""
    login = read_json(BrokerUsers(data=plan.data).credentials(BOOTSTRAP))
    made = read_json(plan.data.made_streams)
    made.pop(remake, None)
    async with nats_bus.connect(url=plan.broker_urls, instance=BOOTSTRAP, user=login["user"], password=login["password"]) as bus:
        present = {stream.name for stream in streams.STREAMS if await bus.stream_info(stream.name) is not None}
        await provision.provision(bus, replicas=plan.profile.servers, only=select(made, present))
    write_private(plan.data.made_streams, json.dumps(wanted(plan.profile.servers)))


if __name__ == "__main__":
    asyncio.run(bootstrap(Plan.load(DataDir(Path(sys.argv[1])))))
