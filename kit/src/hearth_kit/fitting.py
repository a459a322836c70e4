"""Saying what fits: a message that the broker will never take is said in fewer words, since somebody waits for it."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hearth_contracts.calls import Meta
from hearth_kit.errors import PayloadTooLarge

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Meta)


async def publish_fitting(publish: Callable[[M], Awaitable[None]], meta: M, less: Callable[[], M], *, job: str) -> None:
    """Publish `meta`, or less of it where it never fits. Bounds (`hearth_contracts.bounds`) keep the second from happening:
    whoever reads of it has found a defect."""
    try:
        await publish(meta)
    except PayloadTooLarge as error:
        _log.error("a message never fits, less of it is said: %s", error, extra={"job": job})
        await publish(less())
