"""A zip's entries, read by hand and checked against each other: the standard library would load a million entries first,
and believes the central directory where an unpacker may believe the local headers.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from hearth_gateway.domain.entry_rules import ENTRIES_MAX, NAME_BYTES_MAX, Entries, Kind, refused
from hearth_gateway.errors import BundleInvalid

_END: Final = struct.Struct("<4s4H2LH")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_COMMENT_BYTES_MAX: Final = 65_535
_READ_BYTES: Final = 64 * 1024
_STORED, _DEFLATED = 0, 8
_ENCRYPTED: Final = 0x1
_UTF8: Final = 0x800
_UNIX: Final = 3
_UNICODE_PATH: Final = 0x7075
_KINDS: Final[dict[int, Kind]] = {0: "file", 0o100000: "file", 0o120000: "link", 0o020000: "device", 0o060000: "device"}
#: Extra fields may be this long in all before the directory is refused as padding.
_DIRECTORY_BYTES_MAX: Final = ENTRIES_MAX * (_CENTRAL.size + NAME_BYTES_MAX // 4)

Keep = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    unpacked: int
    offset: int


def inspect(file: BinaryIO, size: int, entries: Entries, keep: Keep) -> dict[str, bytes]:
    """Check every entry and every byte; the contents of the files asked for. Raises `BundleInvalid`."""
    found = sorted(_directory(file, size, entries), key=lambda entry: entry.offset)
    announced = sum(entry.unpacked for entry in found)
    Entries(entries.packed_bytes).grow(announced)  # refused before a byte is unpacked
    kept: dict[str, bytes] = {}
    position = 0
    for entry in found:
        if entry.offset < position:
            raise refused(entry.name, "overlaps another entry")
        start = _data_start(file, entry)
        position = start + entry.packed
        if position > size:
            raise refused(entry.name, "reaches past the end of the archive")
        data = _unpack(file, start, entry, entries, wanted=keep(entry.name))
        if data is not None:
            kept[entry.name] = data
    return kept


def _directory(file: BinaryIO, size: int, entries: Entries) -> Iterator[_Entry]:
    tail_size = min(size, _COMMENT_BYTES_MAX + _END.size)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise BundleInvalid("the zip has no end: it is cut short or no zip at all")
    _, disk, first_disk, here, count, directory_size, offset, _ = _END.unpack_from(tail, at)
    end = size - tail_size + at
    if disk or first_disk or here != count:
        raise BundleInvalid("a zip in several parts is not allowed")
    if count == 0xFFFF or 0xFFFFFFFF in (directory_size, offset):
        raise BundleInvalid(f"a zip64 archive, or more than {ENTRIES_MAX} entries")
    if count > ENTRIES_MAX or directory_size > _DIRECTORY_BYTES_MAX:
        raise BundleInvalid(f"more than {ENTRIES_MAX} entries")
    if offset + directory_size != end:
        raise BundleInvalid("the zip's directory is not where its end says")
    file.seek(offset)
    directory = file.read(directory_size)
    position = 0
    for _ in range(count):
        entry, position = _central(directory, position, entries)
        if entry is not None:
            yield entry
    if position != len(directory):
        raise BundleInvalid("the zip's directory holds more than its entries")


def _central(directory: bytes, position: int, entries: Entries) -> tuple[_Entry | None, int]:
    if len(directory) - position < _CENTRAL.size:
        raise BundleInvalid("the zip's directory is cut short")
    (signature, made_by, _, flags, method, _, _, crc, packed, unpacked, name_size, extra_size, comment_size, _, _, attributes,
        offset) = _CENTRAL.unpack_from(directory, position)  # fmt: skip
    start = position + _CENTRAL.size
    raw_name = directory[start : start + name_size]
    extra = directory[start + name_size : start + name_size + extra_size]
    if signature != b"PK\x01\x02" or len(raw_name) != name_size or len(extra) != extra_size:
        raise BundleInvalid("the zip's directory is damaged")
    name = _decoded(raw_name, flags)
    if 0xFFFFFFFF in (packed, unpacked, offset):
        raise refused(name, "zip64 entries are not allowed")
    if flags & _ENCRYPTED:
        raise refused(name, "encrypted entries are not allowed")
    if method not in (_STORED, _DEFLATED):
        raise refused(name, "only stored and deflated entries are allowed")
    _check_extra(name, extra)
    kind, mode = _kind(name, made_by >> 8, attributes >> 16)
    path = entries.add(name, kind, mode)
    following = start + name_size + extra_size + comment_size
    if kind == "folder":
        if unpacked or packed > 2:
            raise refused(name, "a folder with contents")
        return None, following
    return _Entry(path, raw_name, flags, method, crc, packed, unpacked, offset), following


def _decoded(raw: bytes, flags: int) -> str:
    if raw.isascii():
        return raw.decode("ascii")
    if not flags & _UTF8:
        raise refused(raw.decode("cp437"), "a name outside ASCII must be marked as UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise refused(raw.decode("latin-1"), "the name is not valid UTF-8") from error


def _check_extra(name: str, extra: bytes) -> None:
    """An extra field can carry another name for the same entry, which some unpackers prefer."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == _UNICODE_PATH and extra[position + 9 : position + 4 + length] != name.encode():
            raise refused(name, "the entry has a second, different name")
        position += 4 + length


def _kind(name: str, system: int, mode: int) -> tuple[Kind, int]:
    if name.endswith("/"):
        return "folder", mode & 0o7777 if system == _UNIX else 0
    if system != _UNIX:
        return "file", 0
    return _KINDS.get(mode & 0o170000, "other"), mode & 0o7777


def _data_start(file: BinaryIO, entry: _Entry) -> int:
    """Where the entry's bytes begin; its local header must say what the directory says."""
    file.seek(entry.offset)
    header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size:
        raise refused(entry.name, "its header is missing")
    signature, _, flags, method, _, _, _, packed, unpacked, name_size, extra_size = _LOCAL.unpack(header)
    raw_name = file.read(name_size)
    if signature != b"PK\x03\x04" or raw_name != entry.raw_name or method != entry.method or (flags ^ entry.flags) & 0x801:
        raise refused(entry.name, "its header says something else than the directory")
    streamed = flags & 0x8
    if not streamed and (packed, unpacked) != (entry.packed, entry.unpacked):
        raise refused(entry.name, "its header says another size than the directory")
    return entry.offset + _LOCAL.size + name_size + extra_size


def _unpack(file: BinaryIO, start: int, entry: _Entry, entries: Entries, *, wanted: bool) -> bytes | None:
    """Every byte goes through the checks; it is kept only when wanted."""
    file.seek(start)
    left = entry.packed
    inflater = zlib.decompressobj(-15) if entry.method == _DEFLATED else None
    crc, seen = 0, 0
    kept = bytearray()
    pending = b""
    while True:
        if not pending and left:
            pending = file.read(min(_READ_BYTES, left))
            left -= len(pending)
            if not pending:
                raise refused(entry.name, "reaches past the end of the archive")
        try:
            data = inflater.decompress(pending, _READ_BYTES) if inflater is not None else pending
        except zlib.error as error:
            raise refused(entry.name, "its contents are damaged") from error
        pending = inflater.unconsumed_tail if inflater is not None else b""
        seen += len(data)
        entries.grow(len(data))
        if seen > entry.unpacked:
            raise refused(entry.name, "it is larger than it says")
        crc = zlib.crc32(data, crc)
        if wanted:
            kept += data
        if not pending and not left and not data:
            break
    if seen != entry.unpacked or crc != entry.crc or (inflater is not None and not inflater.eof):
        raise refused(entry.name, "its contents are not what the archive says")
    return bytes(kept) if wanted else None
