"""A sync call may last as long as its function: there is no 29-second wall."""

import asyncio

import pytest
from tests.support.platform import Client

pytestmark = [pytest.mark.platform, pytest.mark.docker]


@pytest.mark.timeout(120)
async def test_a_call_of_thirty_five_seconds_answers(hearth: Client) -> None:
    await _answers(hearth, 35)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_call_of_a_hundred_and_fifty_seconds_answers(hearth: Client) -> None:
    await _answers(hearth, 150)


async def _answers(hearth: Client, seconds: int) -> None:
    """Past every usual wall, and past the redelivery of an unsettled run: it is answered, and has run once."""
    source = f"import time\n\ndef handle(event, context):\n    time.sleep({seconds})\n    return context.attempt\n"
    await hearth.deploy(f"patient-{seconds}", source, timeout_s=0)
    began = asyncio.get_running_loop().time()
    answer = await hearth.invoke(f"patient-{seconds}")
    assert (answer.status, answer.json) == (200, 1)
    assert asyncio.get_running_loop().time() - began >= seconds
    done = await hearth.final(answer.headers["x-hearth-job"], 10)
    assert done["attempts"] == 1
