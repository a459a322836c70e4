"""Reading a folder store back from disk, with no broker and no index: for checkers, restores and people.

    for record in reading.read(Path(".hearth/store")):
        print(record.meta.job, record.meta.ending.state, record.result)

`read` yields what is there, twice if it is there twice: whoever wants to know asks `inspect`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hearth_contracts.calls import Record
from hearth_persister.adapters.folder import CHUNK_BYTES, keys
from hearth_persister.domain import object_key, segment
from hearth_persister.domain.entry import output_part
from hearth_persister.domain.segment import Piece, Row, StoredBody
from hearth_persister.errors import KeyMissing, ObjectCorrupt, SegmentCorrupt


@dataclass(frozen=True)
class StoredRecord:
    """One record of a store."""

    root: Path
    key: str
    row: Row
    piece: Piece

    @cached_property
    def meta(self) -> Record:
        return Record.model_validate_json(self.piece.meta)

    @property
    def job(self) -> str:
        return self.row.summary.job

    @property
    def sequence(self) -> int:
        return self.row.sequence

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 over everything the store holds of this job: equal in every store."""
        digest = hashlib.sha256(self.piece.meta + b"\0" + self.piece.body)
        for body in self.row.objects:
            digest.update(f"\0{body.part}:{body.size}:{body.sha256}:{body.missing}".encode())
        return digest.digest()

    @property
    def input(self) -> bytes:
        return self._part(0)

    @property
    def result(self) -> bytes:
        return self._part(1)

    @property
    def log(self) -> bytes:
        return self._part(2)

    def _part(self, number: int) -> bytes:
        name = object_key.PARTS[number]
        if self.stored_body(name) is not None:
            return b"".join(self.chunks(name))
        return self.meta.parts(self.piece.body)[number]

    @property
    def outputs(self) -> dict[str, str]:
        """The parts in which its output files lie, by their names: for `chunks`."""
        return {file.name: output_part(number) for number, file in enumerate(self.meta.ending.outputs, 1)}

    def stored_body(self, part: str) -> StoredBody | None:
        """The object of its own that this part lies in, if it does."""
        return next((body for body in self.row.objects if body.part == part), None)

    def chunks(self, part: str) -> Iterator[bytes]:
        """A large body, chunk by chunk, checked at the end. Raises `KeyMissing` or `ObjectCorrupt`."""
        body = self.stored_body(part)
        if body is None or body.missing:
            raise KeyMissing(f"{self.job}: its {part} had left the broker before it could be stored")
        digest = hashlib.sha256()
        try:
            with (self.root / body.key).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    yield chunk
        except FileNotFoundError as error:
            raise KeyMissing(body.key) from error
        if digest.hexdigest() != body.sha256:
            raise ObjectCorrupt(body.key)


def read(root: Path) -> Iterator[StoredRecord]:
    """Every record, in the order of the stream. Raises `SegmentCorrupt` at a segment that is not what was written."""
    for key in keys(root, object_key.SEGMENTS):
        yield from _records(root, key)


def _records(root: Path, key: str) -> Iterator[StoredRecord]:
    data = (root / key).read_bytes()
    try:
        for row, piece in segment.pieces(data, segment.verify(data)):
            yield StoredRecord(root, key, row, piece)
    except SegmentCorrupt as error:
        raise SegmentCorrupt(f"{key}: {error}") from error


@dataclass
class Findings:
    """What is wrong with a store, if anything."""

    records: int = 0
    fingerprints: dict[str, bytes] = field(default_factory=dict)
    """By job."""
    twice: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    """Keys whose bytes are not those that were written."""
    missing: list[str] = field(default_factory=list)
    """Bodies that a record names and the store does not hold."""
    gaps: list[str] = field(default_factory=list)
    """Segments that do not begin where the one before ended."""

    @property
    def clean(self) -> bool:
        return not (self.twice or self.corrupt or self.missing or self.gaps)


def inspect(root: Path) -> Findings:
    """Read everything, check every byte."""
    found = Findings()
    position: tuple[str, int] | None = None
    for key in keys(root, object_key.SEGMENTS):
        try:
            position = _inspect_segment(root, key, found, position)
        except SegmentCorrupt:
            found.corrupt.append(key)
            position = None
    return found


def _inspect_segment(root: Path, key: str, found: Findings, position: tuple[str, int] | None) -> tuple[str, int]:
    data = (root / key).read_bytes()
    directory = segment.verify(data)
    if position is not None and position[0] == directory.epoch and directory.first != position[1] + 1:
        found.gaps.append(key)
    for row, piece in segment.pieces(data, directory):
        record = StoredRecord(root, key, row, piece)
        found.records += 1
        if record.job in found.fingerprints:
            found.twice.append(record.job)
        found.fingerprints[record.job] = record.fingerprint
        for body in row.objects:
            try:
                for _ in record.chunks(body.part):
                    pass
            except KeyMissing:
                found.missing.append(body.key or f"{record.job}.{body.part}")
            except ObjectCorrupt:
                found.corrupt.append(body.key)
    return directory.epoch, directory.last
