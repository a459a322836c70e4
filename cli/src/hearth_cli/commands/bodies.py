"""An event as the command line takes it: text, `@file`, or `@-` for what stands on stdin."""

import json
import sys
from pathlib import Path

from hearth_cli.errors import CommandError


def read(told: str) -> tuple[bytes, str]:
    """The bytes and their content type."""
    if told == "@-":
        return _typed(sys.stdin.buffer.read())
    if told.startswith("@"):
        try:
            return _typed(Path(told[1:]).read_bytes())
        except OSError as failure:
            raise CommandError(f"{told[1:]} cannot be read: {failure.strerror}.") from None
    return _typed(told.encode())


def _typed(body: bytes) -> tuple[bytes, str]:
    if not body:
        return b"null", "application/json"
    try:
        json.loads(body)
    except ValueError:
        pass
    else:
        return body, "application/json"
    try:
        body.decode()
    except UnicodeDecodeError:
        return body, "application/octet-stream"
    return body, "text/plain; charset=utf-8"
