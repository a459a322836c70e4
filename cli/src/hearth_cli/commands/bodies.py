"""An event as the command line takes it: text, `@file`, or `@-` for what stands on stdin."""

import json
import sys
from pathlib import Path
from typing import Final

from hearth_cli.errors import CommandError

#: Whoever begins like this means JSON: a slip of the quotes must not reach the function as text.
_JSON_STARTS: Final = (b"{", b"[")


def read(told: str) -> tuple[bytes, str]:
    """The bytes and their content type."""
    if told == "@-":
        return _typed(sys.stdin.buffer.read())
    if told.startswith("@"):
        try:
            return _typed(Path(told[1:]).read_bytes())
        except OSError as failure:
            raise CommandError(
                f"{told[1:]} cannot be read: {failure.strerror}.", fix="name a file that is there, or @- for stdin"
            ) from None
    return _typed(told.encode())


def _typed(body: bytes) -> tuple[bytes, str]:
    if not body:
        return b"null", "application/json"
    try:
        json.loads(body)
    except ValueError as failure:
        if body.lstrip()[:1] in _JSON_STARTS:
            raise CommandError(
                f"This looks like JSON and is none: {failure}.",
                fix="""put it in single quotes, as in '{"name": "ada"}'""",
                detail=body.decode(errors="replace")[:200],
            ) from None
    else:
        return body, "application/json"
    try:
        body.decode()
    except UnicodeDecodeError:
        return body, "application/octet-stream"
    return body, "text/plain; charset=utf-8"
