"""A function's folder as one archive: the same files give the same bytes, wherever and whenever it is packed."""

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hearth_cli.errors import CommandError

SPEC_NAME: Final = "function.yaml"
#: Never part of a function: tools' own files and what is made anew anyway.
SKIPPED: Final = frozenset(
    {SPEC_NAME, "__pycache__", ".git", ".hg", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".DS_Store"}
)
#: The platform's own limit; saying it here saves the upload.
PACKED_BYTES_MAX: Final = 50 * 1024 * 1024


def folder_of(path: Path) -> Path:
    """The folder of a function, named by itself or by its function.yaml."""
    folder = path.parent if path.name == SPEC_NAME else path
    if not (folder / SPEC_NAME).is_file():
        raise CommandError(f"There is no {SPEC_NAME} in {folder}.", fix=f"./hearth new {folder.name or 'hello'}")
    return folder


def files(folder: Path) -> Iterator[Path]:
    """Every file that belongs to the function, sorted."""
    for path in sorted(folder.iterdir()):
        if path.name in SKIPPED or path.suffix == ".pyc":
            continue
        if path.is_symlink():
            raise CommandError(
                f"{path} is a link; a function's code is plain files.",
                fix=f'cp --remove-destination "$(readlink -f {path})" {path}',
            )
        if path.is_dir():
            yield from files(path)
        elif path.is_file():
            yield path


def pack(folder: Path) -> bytes:
    """The folder as tar.gz, without owners, times or order of the disk."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for path in files(folder):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
    if len(buffer.getbuffer()) > PACKED_BYTES_MAX:
        raise CommandError(
            f"{folder} is {len(buffer.getbuffer()) >> 20} MB packed; a function may have {PACKED_BYTES_MAX >> 20} MB."
        )
    return buffer.getvalue()


def fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever a file of the function does."""
    spec = folder / SPEC_NAME
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in (spec, *files(folder)))
