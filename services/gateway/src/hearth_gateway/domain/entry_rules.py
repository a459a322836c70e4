"""What may be in a bundle: rules on names, kinds, counts and sizes, told one entry at a time.

Whoever reads the archive reports each entry here before touching its bytes; nothing is ever extracted.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Final, Literal

from hearth_contracts.functions import CODE_UNPACKED_BYTES_MAX
from hearth_gateway.errors import BundleInvalid, FieldError

ENTRIES_MAX: Final = 20_000
NAME_BYTES_MAX: Final = 1024
PART_BYTES_MAX: Final = 255
DEPTH_MAX: Final = 32
#: How many times larger than packed a bundle may be. Source text packs 5 to 20 times; zeros a thousand times.
RATIO_MAX: Final = 100
#: Below this size no ratio is suspicious.
RATIO_FREE_BYTES: Final = 8 * 1024 * 1024

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_DRIVE: Final = re.compile(r"[A-Za-z]:")

Kind = Literal["file", "folder", "link", "device", "other"]


def refused(name: str, why: str) -> BundleInvalid:
    shown = name[:120].encode("unicode_escape").decode()
    return BundleInvalid(f"{shown}: {why}", errors=[FieldError(shown, why)])


def checked_name(name: str) -> str:
    """A relative path with plain parts, without a slash at the end; or `BundleInvalid`."""
    path = name.removeprefix("./").removesuffix("/")  # `tar c .` writes ./main.py
    if not path:
        raise refused(name, "an entry without a name")
    try:
        raw = path.encode()
    except UnicodeEncodeError as error:
        raise refused(name, "the name is not valid text") from error
    if len(raw) > NAME_BYTES_MAX:
        raise refused(name, f"the name is longer than {NAME_BYTES_MAX} bytes")
    if _CONTROL.search(path):
        raise refused(name, "the name holds control characters")
    if "\\" in path:
        raise refused(name, "use / between folders")
    if path.startswith("/") or _DRIVE.match(path):
        raise refused(name, "the name must be relative")
    parts = path.split("/")
    if len(parts) > DEPTH_MAX:
        raise refused(name, f"more than {DEPTH_MAX} folders deep")
    for part in parts:
        if part in ("", ".", ".."):
            raise refused(name, "the name may not hold empty parts, . or ..")
        if len(part.encode()) > PART_BYTES_MAX:
            raise refused(name, f"a part of the name is longer than {PART_BYTES_MAX} bytes")
    return path


@dataclass(slots=True)
class Entries:
    """The entries seen so far. Collisions count after folding: two names that a file system may take for one are one."""

    packed_bytes: int
    unpacked_bytes: int = 0
    count: int = 0
    _kinds: dict[str, tuple[str, Kind]] = field(default_factory=dict)

    def add(self, name: str, kind: Kind, mode: int) -> str:
        """One more entry; its checked name."""
        self.count += 1
        if self.count > ENTRIES_MAX:
            raise BundleInvalid(f"more than {ENTRIES_MAX} entries")
        if name in (".", "./") and kind == "folder":
            return "."
        path = checked_name(name)
        if kind == "link":
            raise refused(name, "links are not allowed")
        if kind in ("device", "other"):
            raise refused(name, "only plain files and folders are allowed")
        if mode & 0o7000:
            raise refused(name, "setuid, setgid and sticky bits are not allowed")
        self._remember(path, kind)
        return path

    def _remember(self, path: str, kind: Kind) -> None:
        parts = path.split("/")
        for length in range(1, len(parts)):
            self._claim("/".join(parts[:length]), "folder", path)
        self._claim(path, kind, path)

    def _claim(self, path: str, kind: Kind, shown: str) -> None:
        key = unicodedata.normalize("NFC", path).casefold()
        key = unicodedata.normalize("NFC", key)
        known = self._kinds.get(key)
        if known is None:
            if len(self._kinds) > 4 * ENTRIES_MAX:
                raise BundleInvalid("too many folders")
            self._kinds[key] = (path, kind)
            return
        if known[0] != path:
            raise refused(shown, f"differs from {known[0][:120]!r} only in case or in how it is encoded")
        if known[1] != kind:
            raise refused(shown, "is both a file and a folder")
        if kind == "file":
            raise refused(shown, "stands in the bundle twice")

    def grow(self, size: int) -> None:
        """So many more unpacked bytes were seen, or are announced."""
        self.unpacked_bytes += size
        if self.unpacked_bytes > CODE_UNPACKED_BYTES_MAX:
            raise BundleInvalid(f"unpacked it is larger than {CODE_UNPACKED_BYTES_MAX // 1024 // 1024} MB")
        if self.unpacked_bytes > RATIO_FREE_BYTES and self.unpacked_bytes > RATIO_MAX * max(1, self.packed_bytes):
            raise BundleInvalid(f"it unpacks to more than {RATIO_MAX} times its size")

    def files(self) -> set[str]:
        return {path for path, kind in self._kinds.values() if kind == "file"}
