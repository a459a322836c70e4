"""A code bundle, checked without running or unpacking anything: its bytes are read once, in a bounded memory."""

from dataclasses import dataclass
from typing import BinaryIO, Literal

from hearth_gateway.domain import entry_rules, handler
from hearth_gateway.domain.entry_rules import Entries
from hearth_gateway.errors import BundleInvalid
from hearth_gateway.functions import tar_reader, zip_reader

Kind = Literal["zip", "tar.gz", "file"]
_REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was found to be in order."""

    kind: Kind
    filename: str = ""


def kind_of(first: bytes) -> Kind:
    """By the first bytes; what people name their files is no evidence."""
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if first.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if first[257:262] == b"ustar":
        raise BundleInvalid("a plain tar is not taken", fix="pack it as tar.gz or zip")
    return "file"


def inspect(file: BinaryIO, size: int, *, filename: str, spec_handler: str) -> Bundle:
    """Raises an `InvalidInput` that says what to mend. Blocking: run it in a thread."""
    file.seek(0)
    kind = kind_of(file.read(512))
    file.seek(0)
    if kind == "file":
        return _single(file, filename=filename, spec_handler=spec_handler)
    entries = Entries(size)
    _, function = handler.split(spec_handler)
    wanted = set(handler.candidates(spec_handler))

    def keep(path: str) -> bool:
        return path in wanted or path == _REQUIREMENTS

    kept = zip_reader.inspect(file, size, entries, keep) if kind == "zip" else tar_reader.inspect(file, entries, keep)
    files = entries.files()
    if not files:
        raise BundleInvalid("the bundle is empty")
    path = handler.file_of(spec_handler, files)
    handler.check_requirements(files, kept.get(_REQUIREMENTS))
    handler.check_source(path, kept[path], function)
    return Bundle(kind)


def _single(file: BinaryIO, *, filename: str, spec_handler: str) -> Bundle:
    module, function = handler.split(spec_handler)
    name = filename or f"{module}.py"
    if "/" in entry_rules.checked_name(name):
        raise BundleInvalid(f"the file's name {name[:80]!r} may not hold folders")
    handler.file_of(spec_handler, {name})
    handler.check_source(name, file.read(), function)
    return Bundle("file", name)
