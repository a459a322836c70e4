"""Waiting for what must come, never for time to pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def until(met: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    """Wait for a condition, plain or awaitable; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = met()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.02)
