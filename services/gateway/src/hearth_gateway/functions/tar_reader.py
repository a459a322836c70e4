"""A tar.gz's entries, as they stream by. The standard library reads a whole extended header into memory, however large it
says it is, and follows more dialects than a bundle needs.
"""

import zlib
from typing import BinaryIO, Final

from hearth_gateway.domain.entry_rules import NAME_BYTES_MAX, Entries, Kind, refused
from hearth_gateway.errors import BundleInvalid
from hearth_gateway.functions.zip_reader import Keep

_BLOCK: Final = 512
_READ_BYTES: Final = 64 * 1024
#: An extended header carries a name and a time; more is somebody's trick.
_EXTENDED_BYTES_MAX: Final = 16 * 1024
_SIZE_MAX: Final = 1 << 40
_KINDS: Final[dict[bytes, Kind]] = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "link", b"2": "link",
    b"3": "device", b"4": "device", b"6": "device"}  # fmt: skip


class _Stream:
    """The unpacked bytes of a gzip file, counted as they are made."""

    def __init__(self, file: BinaryIO, entries: Entries) -> None:
        self._file = file
        self._entries = entries
        self._inflater = zlib.decompressobj(31)
        self._packed = b""
        self._ready = b""

    def read(self, count: int) -> bytes:
        """Exactly so many bytes, or fewer at the end."""
        parts: list[bytes] = []
        missing = count
        while missing:
            if not self._ready:
                self._ready = self._more()
                if not self._ready:
                    break
            part, self._ready = self._ready[:missing], self._ready[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def skip(self, count: int) -> int:
        left = count
        while left:
            data = self.read(min(left, _READ_BYTES))
            if not data:
                break
            left -= len(data)
        return count - left

    def _more(self) -> bytes:
        while True:
            if not self._packed:
                self._packed = self._file.read(_READ_BYTES)
                if not self._packed:
                    if not self._inflater.eof:
                        raise BundleInvalid("the archive is cut short")
                    return b""
            if self._inflater.eof:  # another gzip member, as concatenated archives have
                self._inflater = zlib.decompressobj(31)
            try:
                data = self._inflater.decompress(self._packed, _READ_BYTES)
            except zlib.error as error:
                raise BundleInvalid("the archive is damaged, or not gzip") from error
            self._packed = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if data:
                self._entries.grow(len(data))
                return data


def inspect(file: BinaryIO, entries: Entries, keep: Keep) -> dict[str, bytes]:
    """Check every entry; the contents of the files asked for. Raises `BundleInvalid`."""
    stream = _Stream(file, entries)
    kept: dict[str, bytes] = {}
    long_name = ""
    extended: dict[str, str] = {}
    while True:
        header = stream.read(_BLOCK)
        if not header or header == bytes(_BLOCK):
            stream.skip(_SIZE_MAX)  # what follows the end is checked for its size like the rest
            return kept
        name, kind_byte, mode, size = _header(header)
        if kind_byte in (b"x", b"L"):
            payload = _payload(stream, name, size)
            if kind_byte == b"L":
                long_name = _text(payload.rstrip(b"\0"))
            else:
                extended = _extended(name, payload)
            continue
        if kind_byte in (b"g", b"K"):
            raise refused(name, "global headers and link names are not allowed")
        path = entries.add(extended.get("path") or long_name or name, _KINDS.get(kind_byte, "other"), mode)
        size = int(extended["size"]) if "size" in extended else size
        long_name, extended = "", {}
        if _KINDS.get(kind_byte) == "folder":
            if size:
                raise refused(path, "a folder with contents")
            continue
        _contents(stream, path, size, kept, wanted=keep(path))


def _contents(stream: _Stream, path: str, size: int, kept: dict[str, bytes], *, wanted: bool) -> None:
    padded = -(-size // _BLOCK) * _BLOCK
    if wanted:
        data = stream.read(size)
        got = len(data) + stream.skip(padded - size)
        kept[path] = data
    else:
        got = stream.skip(padded)
    if got != padded:
        raise refused(path, "reaches past the end of the archive")


def _header(block: bytes) -> tuple[str, bytes, int, int]:
    if len(block) != _BLOCK:
        raise BundleInvalid("the archive is cut short")
    summed = sum(block[:148]) + 8 * 32 + sum(block[156:])
    if _number(block[148:156]) != summed:
        raise BundleInvalid("the archive is damaged: a header's checksum is wrong")
    name = _text(block[:100].split(b"\0", 1)[0])
    if block[257:263] == b"ustar\0":
        prefix = _text(block[345:500].split(b"\0", 1)[0])
        if prefix:
            name = f"{prefix}/{name}"
    size = _number(block[124:136])
    if size > _SIZE_MAX:
        raise refused(name, "it says an impossible size")
    return name, block[156:157], _number(block[100:108]) & 0o7777, size


def _number(raw: bytes) -> int:
    """Octal text, or GNU's base 256 for large values."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    text = raw.rstrip(b"\0 ").lstrip(b" ")
    if not text:
        return 0
    try:
        if not text.isdigit():
            raise ValueError
        return int(text, 8)
    except ValueError as error:
        raise BundleInvalid("the archive is damaged: a header holds no number where one must be") from error


def _payload(stream: _Stream, name: str, size: int) -> bytes:
    if size > _EXTENDED_BYTES_MAX:
        raise refused(name, "an extended header that large is not allowed")
    payload = stream.read(size)
    stream.skip(-size % _BLOCK)
    return payload


def _extended(name: str, payload: bytes) -> dict[str, str]:
    """A pax header: `length key=value` lines. Only what is harmless is understood; sparse files are not."""
    found: dict[str, str] = {}
    position = 0
    while position < len(payload):
        space = payload.find(b" ", position, position + 8)
        length = payload[position:space]
        if space < 0 or not length.isdigit() or int(length) <= space - position + 1:
            raise refused(name, "its extended header is damaged")
        line = payload[space + 1 : position + int(length)]
        key, equals, value = line.rstrip(b"\n").partition(b"=")
        if not equals or not line.endswith(b"\n"):
            raise refused(name, "its extended header is damaged")
        text = _text(key)
        if text.startswith("GNU.sparse") or text in ("linkpath", "hdrcharset"):
            raise refused(name, f"the extended header {text!r} is not allowed")
        if text in found:
            raise refused(name, f"the extended header {text!r} stands there twice")
        found[text] = _text(value)
        position += int(length)
    if "size" in found and (not found["size"].isdigit() or len(found["size"]) > 12):
        raise refused(name, "it says an impossible size")
    if len(found.get("path", "")) > NAME_BYTES_MAX:
        raise refused(name, "the name is too long")
    return found


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise refused(raw.decode("latin-1"), "the name is not valid UTF-8") from error
