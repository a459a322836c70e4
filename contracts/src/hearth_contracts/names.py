"""Names that people choose and ids that we make. Whatever stands in a subject passes through here first."""

import hashlib
import re
import secrets
from typing import Final

from hearth_contracts.errors import InvalidName

NAME_LENGTH_MAX: Final = 63
#: A file name that every file system takes, with room for what a download adds to it.
OUTPUT_BYTES_MAX: Final = 200
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_=-]{1,200}")
_EVENT_TOKEN: Final = re.compile(r"[A-Za-z0-9_=-]{1,100}")
_JOB: Final = re.compile(r"([a-z][a-z0-9_-]{0,62})-([0-9a-hjkmnp-tv-z]{26})")
_EXECUTOR: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}-[0-9a-f]{8}")
_PLAIN_BYTES: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")

NAME_RULE: Final = "use lower-case letters, digits, - and _, starting with a letter, at most 63 characters"

#: Crockford's base 32, lower case: sorts like the number it stands for, and has no look-alikes.
_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_BITS: Final = 130
_TIME_BITS: Final = 48


def name(field: str, value: str) -> str:
    """A function's or tenant's name, unchanged, or `InvalidName`."""
    if _NAME.fullmatch(value) is None:
        raise InvalidName(field, value, NAME_RULE)
    return value


def token(field: str, value: str) -> str:
    """One token of a subject, unchanged, or `InvalidName`."""
    if _TOKEN.fullmatch(value) is None:
        raise InvalidName(field, value, "use letters, digits, - and _ only")
    return value


def event_path(value: str, *, wildcards: bool = False) -> str:
    """The part of an event's subject that people choose, unchanged, or `InvalidName`.

    With `wildcards`, `*` may stand for one token and `>` for all the rest, as in a trigger.
    """
    tokens = value.split(".")
    for index, part in enumerate(tokens):
        wild = wildcards and (part == "*" or (part == ">" and index == len(tokens) - 1))
        if not wild and _EVENT_TOKEN.fullmatch(part) is None:
            raise InvalidName("event subject", value, "use tokens of letters, digits, - and _ with single dots between")
    if len(tokens) > 12:
        raise InvalidName("event subject", value, "use at most 12 tokens")
    return value


def output(value: str) -> str:
    """The name of an output file, unchanged, or `InvalidName`. It stands in a URL and on somebody's disk one day, never in a
    subject or a key of ours."""
    if value in ("", ".", ".."):
        raise InvalidName("output", value, "this is not the name of a file")
    if "/" in value or "\\" in value:
        raise InvalidName("output", value, "a name holds no / and no \\: outputs have no folders")
    if not value.isprintable():
        raise InvalidName("output", value, "use printable characters only")
    if len(value.encode()) > OUTPUT_BYTES_MAX:
        raise InvalidName("output", value, f"use at most {OUTPUT_BYTES_MAX} bytes")
    return value


def escape(value: str) -> str:
    """A foreign name (a model, a host) as one token: every byte outside `[A-Za-z0-9_-]` becomes `=XX`."""
    return "".join(chr(b) if b in _PLAIN_BYTES else f"={b:02X}" for b in value.encode())


def _base32(number: int) -> str:
    return "".join(_DIGITS[(number >> shift) & 31] for shift in range(_ID_BITS - 5, -1, -5))


def new_job(function: str, now: float) -> str:
    """A fresh job id: sorts by time, carries its function."""
    return f"{function}-{_base32((int(now * 1000) << (_ID_BITS - _TIME_BITS)) | secrets.randbits(_ID_BITS - _TIME_BITS))}"


def derived_job(function: str, cause: str, at: float) -> str:
    """The job id that the same cause always gives: what fires twice is still one job.

    `at` is the cause's own time (the event's, the tick's), never the clock's.
    """
    digest = int.from_bytes(hashlib.sha256(f"{function}\0{cause}".encode()).digest(), "big")
    return f"{function}-{_base32((int(at * 1000) << (_ID_BITS - _TIME_BITS)) | digest >> (256 - _ID_BITS + _TIME_BITS))}"


def job(value: str) -> str:
    """A job id of ours, unchanged, or `InvalidName`."""
    if _JOB.fullmatch(value) is None:
        raise InvalidName("job", value, "this is not a job id")
    return value


def function_of(job_id: str) -> str:
    """The function a job id carries."""
    match = _JOB.fullmatch(job_id)
    if match is None:
        raise InvalidName("job", job_id, "this is not a job id")
    return match[1]


def made_at(job_id: str) -> float:
    """When a job id was made, Unix seconds."""
    number = 0
    for digit in job(job_id)[-26:]:
        number = number << 5 | _DIGITS.index(digit)
    return (number >> (_ID_BITS - _TIME_BITS)) / 1000


def executor(value: str) -> str:
    """An executor id (`<name>-<boot>`), unchanged, or `InvalidName`."""
    if _EXECUTOR.fullmatch(value) is None:
        raise InvalidName("executor", value, "an executor id is a name, a dash and 8 hex digits")
    return value


def new_boot() -> str:
    return secrets.token_hex(4)
