"""A process that holds a role when it can, and writes each moment at which it would act: `time epoch`."""

import asyncio
import sys
import time

from hearth_kit import lease, nats_bus
from hearth_kit.clock import SystemClock


async def main(url: str, holder: str, *, guarded: bool) -> None:
    async with nats_bus.connect(url=url, instance=holder) as bus:
        while True:
            async with lease.Role(bus=bus, role="test", holder=holder, clock=SystemClock()).hold() as held:
                while not held.lost.is_set():
                    now = time.monotonic()
                    if held.ours or not guarded:
                        print(now, held.epoch, flush=True)
                    await asyncio.sleep(0.005)


if __name__ == "__main__":
    short = sys.argv[3:4] != ["shipped"]
    if short:
        lease.TTL_S, lease.RENEW_S, lease.MARGIN_S, lease.LOOK_S, lease.RETRY_S = 1, 0.3, 0.2, 0.1, 0.05
    asyncio.run(main(sys.argv[1], sys.argv[2], guarded="unguarded" not in sys.argv))
