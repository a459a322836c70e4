"""Structured logs: one JSON object a line, with the ids that lead from a line to a job and its trace."""

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict

#: Keys of a log record that are not the user's.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(_: Any, __: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        for key, value in vars(record).items():
            if key not in _STANDARD:
                event.setdefault(key, value)
    return event


def configure(*, service: str, instance: str, level: str) -> None:
    """Standard logging, rendered as JSON on stderr. Called once, first."""

    def _who(_: Any, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        event["instance"] = instance
        return event

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), _who],
        processors=[
            _extra,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # its reconnect attempts; ours are logged by the bus
