"""A service as small as one can be, to see how services live. Each step is written down as a line on stdout."""

import asyncio
import sys

from pydantic import Field

from hearth_kit import lifecycle
from hearth_kit.errors import BusError
from hearth_kit.settings import ServiceSettings


class Settings(ServiceSettings):
    mode: str = Field("", description="What goes wrong.")


def say(*words: object) -> None:
    print(*words, flush=True)


async def serve(settings: Settings) -> None:
    async with lifecycle.running(settings, service="example") as life:
        life.start(_side(life, settings.mode), "side")
        if settings.mode == "not-ready":
            life.problems["store"] = "mount the disk"
        await life.bus.subscribe("example.ask", lambda message: message.respond(b"yes"))
        life.ready()
        say("ready")
        await life.stopping.wait()
        say("intake closed", life.bus.connected)
        await asyncio.sleep(0.05)
        say("work done", life.bus.connected)
    say("bus closed")


async def _side(life: lifecycle.Life, mode: str) -> None:
    try:
        if mode == "crash":
            await asyncio.sleep(0.05)
            raise RuntimeError("the side task has a bug")
        if mode == "end":
            return
        await asyncio.sleep(3600)
    finally:
        say("side task ended", life.bus.connected)
        if mode == "stubborn":
            raise BusError("while ending")


if __name__ == "__main__":
    lifecycle.main(serve, Settings)
    sys.exit(0)
