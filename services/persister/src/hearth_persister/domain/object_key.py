"""Keys in a store. Ours only: every part is validated here, and nothing a person sends reaches a key unseen.

segments/<epoch>/<sequence / 10,000>/<first sequence>.seg      small records, in the order of the stream
objects/<tenant>/<function>/<day>/<job>.<part>                 large inputs, results and logs; output files
undecodable/<epoch>/<sequence>.msg                             what came as a record and is none
unreadable/<epoch>/<first sequence>.<hash>.seg                 a last segment that was damaged, put aside
"""

import datetime as dt
import re
from typing import Final

from hearth_contracts import names

SEGMENTS: Final = "segments/"
OBJECTS: Final = "objects/"
#: The parts of a record that may lie in an object of their own. Besides these, each output file does: `output-1` and so on.
PARTS: Final = ("input", "result", "log")
#: Sequences whose segments share a folder: at one record a second that is three hours of files.
FOLDER_SEQUENCES: Final = 10_000

_EPOCH: Final = re.compile(r"\d{20}-\d{2}")
_SEGMENT: Final = re.compile(r"segments/(\d{20}-\d{2})/\d{12}/(\d{16})\.seg")
_KEY: Final = re.compile(r"[a-z0-9][a-zA-Z0-9_=-]*(?:/[a-zA-Z0-9_=-]+)*(?:\.[a-zA-Z0-9_-]+)*")
_OUTPUT: Final = re.compile(r"output-[1-9][0-9]{0,3}")
_DIGITS: Final = re.compile(r"\D")


def epoch(stream_created: str, generation: int = 0) -> str:
    """Names a life of the record stream: its sequences mean something only within it, and later lives sort after it."""
    digits = _DIGITS.sub("", stream_created.split("Z", maxsplit=1)[0].split("+", maxsplit=1)[0])[:20]
    return f"{digits:0<20}-{generation:02d}"


def next_generation(value: str) -> str:
    """The same stream after it went back in time, as when it was restored from a backup."""
    made, _, generation = value.partition("-")
    return f"{made}-{int(generation) + 1:02d}"


def segment(epoch_name: str, first: int) -> str:
    if _EPOCH.fullmatch(epoch_name) is None or first < 1:
        raise ValueError(f"no segment has epoch {epoch_name!r} and sequence {first}")
    return f"{SEGMENTS}{epoch_name}/{first // FOLDER_SEQUENCES:012d}/{first:016d}.seg"


def parse_segment(key: str) -> tuple[str, int] | None:
    """Epoch and first sequence of a segment's key, or None for a foreign one."""
    match = _SEGMENT.fullmatch(key)
    return None if match is None else (match[1], int(match[2]))


def body(tenant: str, job: str, part: str, *, sha256: str = "") -> str:
    """Where a large body lies. With `sha256` the key tells two different bodies of one job apart."""
    if part not in PARTS and _OUTPUT.fullmatch(part) is None:
        raise ValueError(f"a record has no part {part!r}")
    function = names.function_of(job)
    made = dt.datetime.fromtimestamp(names.made_at(job), dt.UTC)
    tail = f".{sha256[:16]}" if sha256 else ""
    return f"{OBJECTS}{names.name('tenant', tenant)}/{function}/{made:%Y-%m-%d}/{job}.{part}{tail}"


def undecodable(epoch_name: str, sequence: int) -> str:
    if _EPOCH.fullmatch(epoch_name) is None:
        raise ValueError(f"no epoch is called {epoch_name!r}")
    return f"undecodable/{epoch_name}/{sequence:016d}.msg"


def unreadable(segment_key: str, sha256: str) -> str:
    parsed = parse_segment(segment_key)
    if parsed is None:
        raise ValueError(f"{segment_key[:80]!r} is no segment")
    return f"unreadable/{parsed[0]}/{parsed[1]:016d}.{sha256[:16]}.seg"


def valid(key: str) -> str:
    """A key of ours, unchanged. Every store asks before it touches anything."""
    if len(key) > 512 or _KEY.fullmatch(key) is None:
        raise ValueError(f"{key[:80]!r} is not a key")
    return key
