"""A process that writes and reads one large object, and says how much its memory grew: `bytes put MiB get MiB`."""

import asyncio
import sys
from pathlib import Path

from hearth_kit import nats_bus
from hearth_kit.objects import Objects


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def main(url: str, size: int) -> None:
    async with nats_bus.connect(url=url, instance="mover") as bus:
        objects = Objects(bus)
        await objects.put("bodies", "small", b"x" * 1_000_000)
        await objects.get("bodies", "small")
        piece = bytes(range(256)) * 256  # 64 KiB, as from a socket
        forget_peak()
        before = peak_mb()
        writer = objects.writer("bodies", "large", bytes_max=size)
        for _ in range(size // len(piece)):
            await writer.write(piece)
        await writer.finish()
        put = peak_mb() - before
        forget_peak()
        before = peak_mb()
        read = 0
        async for chunk in objects.read("bodies", "large"):
            read += len(chunk)
        print(read, round(put, 1), round(peak_mb() - before, 1))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
