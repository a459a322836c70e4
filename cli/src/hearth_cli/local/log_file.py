"""A process's output in a file that never grows past its limit."""

from pathlib import Path
from typing import Final

#: One file at most; with the kept ones a process's logs take 40 MB.
SIZE_BYTES_MAX: Final = 10_000_000
KEPT: Final = 3


class LogFile:
    """Appends bytes; at the limit the file becomes `.1`, `.1` becomes `.2`, and the oldest goes."""

    def __init__(self, path: Path, *, size_bytes_max: int = SIZE_BYTES_MAX, kept: int = KEPT) -> None:
        self._path = path
        self._size_bytes_max = size_bytes_max
        self._kept = kept
        self._open()

    def write(self, chunk: bytes) -> None:
        """Append. A file may pass its limit by the line that was begun in it."""
        if self._size_bytes + len(chunk) > self._size_bytes_max and self._size_bytes:
            end = chunk.find(b"\n") + 1
            self._append(chunk[:end])
            self._rotate()
            chunk = chunk[end:]
        self._append(chunk)

    def close(self) -> None:
        self._file.close()

    def _append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._size_bytes += len(chunk)

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._kept, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._open()

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        self._size_bytes = self._file.tell()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def tail(path: Path, lines: int) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - lines * 400))
            return b"\n".join(file.read().splitlines()[-lines:]).decode(errors="replace")
    except FileNotFoundError:
        return ""
