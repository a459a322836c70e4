"""A segment: many small records in one object. The format, and nothing else; `docs/adr/0005-segments.md` has the reasons.

    magic        HEARTH-SEGMENT-1 and a line feed
    block*       zlib; entries one after the other, each: sequence, time, length of meta, length of body, meta, body
    directory    zlib; JSON: which part of the stream this is, where the blocks lie, one row per record
    trailer      length of the directory, SHA-256 of all before the trailer, HSEGEND1

The same records give the same bytes, always.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from hearth_persister.domain.entry import Entry, Summary
from hearth_persister.errors import SegmentCorrupt

MAGIC: Final = b"HEARTH-SEGMENT-1\n"
_END: Final = b"HSEGEND1"
_TRAILER: Final = struct.Struct(">I32s8s")
TRAILER_BYTES: Final = _TRAILER.size
_ENTRY: Final = struct.Struct(">QQII")
#: One record is read back by unpacking one block: small enough to be quick, large enough to compress well.
BLOCK_BYTES: Final = 128 * 1024
#: Level 1 takes a twentieth of a hop's cost per record; higher levels gain under a tenth on records.
_LEVEL: Final = 1
_COLUMNS: Final = (
    "sequence", "at_us", "job", "tenant", "function", "version", "lane", "state", "reason", "start", "attempt",
    "submitted_at", "finished_at", "wall_ms", "block", "offset", "meta", "body", "objects",
)  # fmt: skip


class StoredBody(NamedTuple):
    """A large body's own object in the store. `missing`: it had left the broker before it could be copied."""

    part: str
    key: str
    size: int
    sha256: str
    missing: bool = False


class Spot(NamedTuple):
    """Where in its segment a record lies: in which block, and where in that once it is unpacked."""

    sequence: int
    block_offset: int
    block_length: int
    offset: int
    meta_length: int
    body_length: int


class Row(NamedTuple):
    """One record of a directory."""

    spot: Spot
    at_us: int
    summary: Summary
    objects: tuple[StoredBody, ...] = ()

    @property
    def sequence(self) -> int:
        return self.spot.sequence


@dataclass(frozen=True, slots=True)
class Directory:
    epoch: str
    first: int
    last: int
    rows: tuple[Row, ...]

    @property
    def last_at_us(self) -> int:
        return max((row.at_us for row in self.rows), default=0)

    def row(self, sequence: int) -> Row | None:
        return next((row for row in self.rows if row.sequence == sequence), None)


@dataclass(frozen=True, slots=True)
class Encoded:
    data: bytes
    sha256: str
    directory: Directory


@dataclass(frozen=True, slots=True)
class Piece:
    """One record read back."""

    sequence: int
    at_us: int
    meta: bytes
    body: bytes


def encode(*, epoch: str, first: int, last: int, entries: Sequence[Entry], bodies: Mapping[int, Sequence[StoredBody]]) -> Encoded:
    """The bytes of a segment. `bodies`: where the large bodies of a sequence lie."""
    parts = [MAGIC]
    position = len(MAGIC)
    blocks: list[tuple[int, int]] = []
    places: list[tuple[int, int]] = []
    pending: list[bytes] = []
    pending_bytes = 0

    def seal() -> None:
        nonlocal position, pending_bytes
        packed = zlib.compress(b"".join(pending), _LEVEL)
        blocks.append((position, len(packed)))
        parts.append(packed)
        position += len(packed)
        pending.clear()
        pending_bytes = 0

    for entry in entries:
        if pending_bytes >= BLOCK_BYTES:
            seal()
        places.append((len(blocks), pending_bytes))
        pending += (_ENTRY.pack(entry.sequence, entry.at_us, len(entry.meta), len(entry.body)), entry.meta, entry.body)
        pending_bytes += _ENTRY.size + len(entry.meta) + len(entry.body)
    if pending:
        seal()
    rows = [_as_list(entry, place, bodies.get(entry.sequence, ())) for entry, place in zip(entries, places, strict=True)]
    plain = {"epoch": epoch, "first": first, "last": last, "blocks": blocks, "columns": _COLUMNS, "records": rows}
    directory = zlib.compress(to_json(plain), _LEVEL)
    parts.append(directory)
    content = b"".join(parts)
    data = content + _TRAILER.pack(len(directory), hashlib.sha256(content).digest(), _END)
    return Encoded(data, hashlib.sha256(data).hexdigest(), _directory(plain))


def _as_list(entry: Entry, place: tuple[int, int], bodies: Sequence[StoredBody]) -> list[Any]:
    words = entry.summary
    return [
        entry.sequence, entry.at_us, words.job, words.tenant, words.function, words.version, words.lane, words.state,
        words.reason, words.start, words.attempt, words.submitted_at, words.finished_at, words.wall_ms,
        place[0], place[1], len(entry.meta), len(entry.body),
        [[body.part, body.key, body.size, body.sha256, int(body.missing)] for body in bodies],
    ]  # fmt: skip


def _directory(plain: Mapping[str, Any]) -> Directory:
    blocks = plain["blocks"]
    rows = tuple(
        Row(
            spot=Spot(row[0], *blocks[row[14]], *row[15:18]),
            at_us=row[1],
            summary=Summary(*row[2:14]),
            objects=tuple(StoredBody(body[0], body[1], body[2], body[3], bool(body[4])) for body in row[18]),
        )
        for row in plain["records"]
    )
    return Directory(plain["epoch"], plain["first"], plain["last"], rows)


def directory_bytes(trailer: bytes) -> int:
    """How many bytes before the trailer are the directory."""
    if len(trailer) != _TRAILER.size:
        raise SegmentCorrupt("it is shorter than its trailer")
    length, _, end = _TRAILER.unpack(trailer)
    if end != _END:
        raise SegmentCorrupt("its end is missing")
    return int(length)


def decode_directory(packed: bytes) -> Directory:
    try:
        return _directory(from_json(zlib.decompress(packed)))
    except (zlib.error, ValueError, KeyError, IndexError, TypeError) as error:
        raise SegmentCorrupt(f"its directory does not read: {error}") from error


def verify(data: bytes) -> Directory:
    """The directory of a whole segment, after all its bytes were checked."""
    length = directory_bytes(data[-_TRAILER.size :])
    content = data[: -_TRAILER.size]
    if not data.startswith(MAGIC) or len(content) < len(MAGIC) + length:
        raise SegmentCorrupt("it does not begin as a segment does")
    if hashlib.sha256(content).digest() != _TRAILER.unpack(data[-_TRAILER.size :])[1]:
        raise SegmentCorrupt("its bytes are not those that were written")
    return decode_directory(content[-length:])


def cut(block: bytes, spot: Spot) -> Piece:
    """One record out of its packed block."""
    try:
        return _piece(zlib.decompress(block), spot)
    except zlib.error as error:
        raise SegmentCorrupt(f"a block does not unpack: {error}") from error


def _piece(plain: bytes, spot: Spot) -> Piece:
    try:
        sequence, at_us, meta_length, body_length = _ENTRY.unpack_from(plain, spot.offset)
    except struct.error as error:
        raise SegmentCorrupt(f"a record lies outside its block: {error}") from error
    if (sequence, meta_length, body_length) != (spot.sequence, spot.meta_length, spot.body_length):
        raise SegmentCorrupt("a record is not where the directory says")
    start = spot.offset + _ENTRY.size
    end = start + meta_length + body_length
    if end > len(plain):
        raise SegmentCorrupt("a record is cut short")
    return Piece(sequence, at_us, plain[start : start + meta_length], plain[start + meta_length : end])


def pieces(data: bytes, directory: Directory) -> Iterator[tuple[Row, Piece]]:
    """Every record of a verified segment, in order; one block at a time in memory."""
    at, plain = -1, b""
    for row in directory.rows:
        spot = row.spot
        if spot.block_offset != at:
            try:
                plain = zlib.decompress(data[spot.block_offset : spot.block_offset + spot.block_length])
            except zlib.error as error:
                raise SegmentCorrupt(f"a block does not unpack: {error}") from error
            at = spot.block_offset
        yield row, _piece(plain, spot)
