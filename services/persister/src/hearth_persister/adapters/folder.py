"""A store in a folder: create-only, atomic, durable when it says so.

An object is written beside the others under a name of its own, synced, then linked to its key: `link` refuses a key that
exists, and a crash leaves either nothing or the whole. What a crash leaves of the former is swept later.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from hearth_persister.domain import object_key
from hearth_persister.errors import KeyMissing, ObjectCorrupt, StoreError
from hearth_persister.ports import Exists, Stored

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES: Final = 256 * 1024
#: A half-written file this old belongs to nobody any more: the longest copy is bounded by what the broker keeps (24 h).
LEFTOVER_S: Final = 48 * 3600
#: Keys listed in one go.
LIST_KEYS: Final = 1000
_TEMPORARY: Final = ".writing"


class FolderStore:
    """One folder. Blocking calls run in threads of its own, so that a slow disk stalls no other store."""

    def __init__(self, name: str, root: Path, *, threads: int = 4) -> None:
        self._name = name
        self.root = root
        self._temporary = root / _TEMPORARY
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"store-{name}")
        self._numbers = itertools.count()
        self._made: set[Path] = set()

    @property
    def name(self) -> str:
        return self._name

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def guarded() -> T:
            try:
                return work(*args, **kwargs)
            except FileNotFoundError as error:
                raise KeyMissing(f"{self._name}: {error}") from error
            except OSError as error:
                raise StoreError(f"{self._name}: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, guarded)

    # Writing

    async def check(self) -> None:
        await self._run(self._check)

    def _check(self) -> None:
        self._temporary.mkdir(parents=True, exist_ok=True)
        path, linked = self._new_path(), self._new_path()
        try:
            _write(path, b"may this be written?")
            os.link(path, linked)
        finally:
            for name in (path, linked):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    name.unlink()
        oldest = time.time() - LEFTOVER_S
        for entry in os.scandir(self._temporary):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)

    async def put_new(self, key: str, content: bytes | AsyncIterator[bytes], *, sha256: str) -> Stored | Exists:
        target = self._path(key)
        if isinstance(content, bytes):
            return await self._run(self._put_bytes, target, content, sha256)
        path = self._new_path()
        try:
            size = await self._spool(path, content, sha256)
            return await self._run(self._commit, path, target, size, sha256)
        finally:
            with contextlib.suppress(StoreError):
                await self._run(_remove, path)

    async def _spool(self, path: Path, content: AsyncIterator[bytes], sha256: str) -> int:
        """Write a stream of chunks to `path`, synced; never more than a chunk or two in memory."""
        file = await self._run(_create, path)
        digest = hashlib.sha256()
        size = 0

        def append(chunk: bytes) -> None:
            digest.update(chunk)
            _write_all(file, chunk)

        try:
            async for chunk in content:
                size += len(chunk)
                await self._run(append, chunk)
            await self._run(os.fsync, file)
        finally:
            os.close(file)
        if digest.hexdigest() != sha256:
            raise ObjectCorrupt(f"{self._name}: {size} bytes hash to {digest.hexdigest()[:16]}, announced was {sha256[:16]}")
        return size

    def _put_bytes(self, target: Path, content: bytes, sha256: str) -> Stored | Exists:
        path = self._new_path()
        try:
            _write(path, content)
            return self._commit(path, target, len(content), sha256)
        finally:
            _remove(path)

    def _commit(self, path: Path, target: Path, size: int, sha256: str) -> Stored | Exists:
        try:
            self._make_folder(target.parent)
            os.link(path, target)
        except FileExistsError:
            return Exists(equal=_sha256(target) == sha256)
        except FileNotFoundError:
            self._made.clear()  # somebody removed a folder that was made a while ago: make it again next time
            raise
        _sync_folder(target.parent)
        return Stored(size)

    def _make_folder(self, folder: Path) -> None:
        """Make it and what is above it, each entry durable before anything is put below."""
        if folder in self._made:
            return
        if folder != self.root:
            self._make_folder(folder.parent)
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)
        if len(self._made) > 10_000:
            self._made.clear()
        self._made.add(folder)

    def _new_path(self) -> Path:
        return self._temporary / f"{os.getpid()}-{next(self._numbers)}-{os.urandom(8).hex()}"

    def _path(self, key: str) -> Path:
        return self.root / object_key.valid(key)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(KeyMissing):
            await self._run(_remove, path)

    # Reading

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(key)

        def read() -> bytes:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size + start) if start < 0 else start)
                return file.read() if length is None else file.read(length)

        return await self._run(read)

    async def read(self, key: str) -> AsyncIterator[bytes]:
        file = await self._run(self._path(key).open, "rb")
        try:
            while chunk := await self._run(file.read, CHUNK_BYTES):  # pyright: ignore[reportCallIssue, reportArgumentType]
                yield chunk  # pyright: ignore[reportReturnType]
        finally:
            file.close()

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        walk = keys(self.root, prefix, after=after)
        while page := await self._run(lambda: tuple(itertools.islice(walk, LIST_KEYS))):
            for key in page:
                yield key


def keys(root: Path, prefix: str, *, after: str = "") -> Iterator[str]:
    """Keys below a prefix that ends in `/`, in order, those greater than `after` only."""
    base = root / prefix.rstrip("/")
    if not base.exists():
        return
    yield from _walk(base, prefix, after)


def _walk(folder: Path, prefix: str, after: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    if after.startswith(prefix):
        entries = entries[bisect_left(entries, (after[len(prefix) :].split("/", maxsplit=1)[0], False)) :]
    for name, is_folder in entries:
        key = prefix + name
        if is_folder:
            yield from _walk(folder / name, f"{key}/", after)
        elif key > after:
            yield key


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)


def _write(path: Path, content: bytes) -> None:
    file = _create(path)
    try:
        _write_all(file, content)
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
