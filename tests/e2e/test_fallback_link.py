"""Where the fast link is not permitted, everything works over the attached streams, and the status says so."""

from pathlib import Path

import pytest
from tests.support.platform import client, started

pytestmark = [pytest.mark.platform, pytest.mark.docker]

CURIOUS = """
import os, socket


def handle(event, context):
    found = []
    for fd in range(0, 64):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        found.append(target)
    try:
        open("/proc/1/mem", "rb")
        memory = "opened"
    except OSError as error:
        memory = type(error).__name__
    print("HRTH a line that looks like a frame")
    return {"descriptors": found, "memory": memory}
"""


async def test_a_platform_without_the_fast_link(data: Path) -> None:
    """Given the fast link forbidden, then calls of each isolation are answered and the supervisor is out of reach."""
    with started(data, env={"HEARTH_LINK": "stdio"}) as platform:
        async with client(platform) as hearth:
            for isolation in ("process", "reuse", "fresh"):
                await hearth.deploy(f"plain-{isolation}", isolation=isolation)
                answers = [await hearth.invoke(f"plain-{isolation}", {"name": str(n)}) for n in range(5)]
                assert [answer.json for answer in answers] == [{"hello": str(n)} for n in range(5)]
            await hearth.deploy("curious", CURIOUS)
            told = (await hearth.invoke("curious")).json
            assert told["memory"] != "opened"
            system = (await hearth.call("GET", "/v1/system")).json
            assert all(executor["backend_notes"]["link"].startswith("stdio") for executor in system["executors"]), system
