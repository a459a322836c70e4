"""What lies where in one store: a SQLite file beside the process, made anew from the store whenever it is lost.

The store is the truth. Every call runs in one thread of the index's own.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from hearth_contracts.calls import ArchiveQuery
from hearth_persister.domain.segment import Directory, Row, Spot

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Raised whenever the tables change: an index of another version is dropped and made anew.
VERSION: Final = 1
#: Pages of the cache: 4 MiB.
_CACHE_KIB: Final = 4096

_TABLES: Final = """
CREATE TABLE segments (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, epoch TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    last_at_us INTEGER NOT NULL, records INTEGER NOT NULL
);
CREATE INDEX segments_by_epoch ON segments (epoch, first);
CREATE TABLE jobs (
    job TEXT PRIMARY KEY, tenant TEXT NOT NULL, function TEXT NOT NULL, version INTEGER NOT NULL, lane TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, start TEXT NOT NULL, attempt INTEGER NOT NULL, submitted_at REAL NOT NULL,
    finished_at REAL NOT NULL, wall_ms REAL NOT NULL, sequence INTEGER NOT NULL, at_us INTEGER NOT NULL,
    segment INTEGER NOT NULL, block_offset INTEGER NOT NULL, block_length INTEGER NOT NULL, offset INTEGER NOT NULL,
    meta_length INTEGER NOT NULL, body_length INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_by_function ON jobs (tenant, function, submitted_at);
CREATE INDEX jobs_by_time ON jobs (tenant, submitted_at);
CREATE INDEX jobs_failed ON jobs (tenant, submitted_at) WHERE state = 'FAILED';
"""
_COLUMNS: Final = (
    "job", "tenant", "function", "version", "lane", "state", "reason", "start", "attempt", "submitted_at", "finished_at",
    "wall_ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """How far a store's chain goes."""

    epoch: str
    last: int
    key: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where one job's record lies."""

    key: str
    spot: Spot


@dataclass(frozen=True, slots=True)
class Page:
    jobs: list[dict[str, Any]]
    next: str


class Index:
    """The index of one store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"index-{path.stem}")
        self._db: sqlite3.Connection | None = None

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown(wait=False)

    async def clear(self) -> None:
        """Forget everything: the store is not the one that this index was made of."""
        await self._run(self._clear)

    async def head(self) -> Head | None:
        """The last segment of the newest epoch."""
        return await self._run(self._head)

    async def known(self, jobs: Sequence[str]) -> set[str]:
        """Which of these jobs the store holds."""
        return await self._run(self._known, jobs)

    async def add(self, found: Sequence[tuple[str, Directory]]) -> int:
        """Take in segments by key; what is known already stays as it is. Returns how many records were known already."""
        return await self._run(self._add, found)

    async def place(self, tenant: str, job: str) -> Place | None:
        return await self._run(self._place, tenant, job)

    async def page(self, query: ArchiveQuery, *, limit: int) -> Page:
        """History, newest first. Raises `ValueError` on a cursor that is not ours."""
        return await self._run(self._page, query, limit)

    async def last_before(self, epoch: str, at_us: int) -> int:
        """The highest sequence that was stored in the stream before this time; 0 when none was."""
        return await self._run(self._last_before, epoch, at_us)

    async def at(self, epoch: str, sequence: int) -> tuple[str, int] | None:
        """Job and time of the last record at or before `sequence`."""
        return await self._run(self._at, epoch, sequence)

    async def count(self) -> int:
        return await self._run(lambda: int(self._connection.execute("SELECT count(*) FROM jobs").fetchone()[0]))

    # In the thread

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._open()
        assert self._db is not None
        return self._db

    def _open(self) -> None:
        if self._db is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # the disk's fault, not the file's
            _log.warning("the index is broken and is made anew: %s", error, extra={"path": str(self._path)})
            self._remove()
            self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, cached_statements=32)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last transactions, never the file: what is lost is read from the store again.
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    db.execute(f'DROP TABLE "{table}"')
                db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).unlink()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _clear(self) -> None:
        self._close()
        self._remove()
        self._open()

    def _head(self) -> Head | None:
        row = self._connection.execute("SELECT epoch, last, key FROM segments ORDER BY epoch DESC, first DESC LIMIT 1").fetchone()
        return None if row is None else Head(*row)

    def _known(self, jobs: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(jobs), 500):
            part = jobs[start : start + 500]
            marks = ",".join("?" * len(part))
            found.update(row[0] for row in self._connection.execute(f"SELECT job FROM jobs WHERE job IN ({marks})", part))  # noqa: S608
        return found

    def _add(self, found: Sequence[tuple[str, Directory]]) -> int:
        db = self._connection
        twice = 0
        db.execute("BEGIN IMMEDIATE")
        try:
            for key, directory in found:
                added = db.execute(
                    "INSERT OR IGNORE INTO segments (key, epoch, first, last, last_at_us, records) VALUES (?, ?, ?, ?, ?, ?)",
                    (key, directory.epoch, directory.first, directory.last, directory.last_at_us, len(directory.rows)),
                )
                if added.rowcount == 0:
                    continue
                segment = added.lastrowid
                before = db.total_changes
                db.executemany(
                    "INSERT OR IGNORE INTO jobs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    [_values(row, segment) for row in directory.rows],
                )
                twice += len(directory.rows) - (db.total_changes - before)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        return twice

    def _place(self, tenant: str, job: str) -> Place | None:
        row = self._connection.execute(
            "SELECT segments.key, sequence, block_offset, block_length, offset, meta_length, body_length"
            " FROM jobs JOIN segments ON segments.id = jobs.segment WHERE job = ? AND tenant = ?",
            (job, tenant),
        ).fetchone()
        return None if row is None else Place(row[0], Spot(*row[1:]))

    def _page(self, query: ArchiveQuery, limit: int) -> Page:
        wanted: list[str] = ["tenant = ?"]
        values: list[str | float] = [query.tenant]
        if query.function:
            wanted.append("function = ?")
            values.append(query.function)
        if query.state == "FAILED":
            wanted.append("state = 'FAILED'")  # as a literal, so that the index of failures serves it
        elif query.state:
            wanted.append("state = ?")
            values.append(query.state)
        if query.since:
            wanted.append("submitted_at >= ?")
            values.append(query.since)
        if query.until:
            wanted.append("submitted_at < ?")
            values.append(query.until)
        if query.cursor:
            at, _, job = query.cursor.partition("~")
            wanted.append("(submitted_at, job) < (?, ?)")
            values += [float(at), job]
        rows = self._connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE {' AND '.join(wanted)}"  # noqa: S608
            " ORDER BY submitted_at DESC, job DESC LIMIT ?",
            (*values, limit + 1),
        ).fetchall()
        jobs: list[dict[str, Any]] = [dict(zip(_COLUMNS, row, strict=True)) for row in rows[:limit]]
        following = f"{jobs[-1]['submitted_at']!r}~{jobs[-1]['job']}" if len(rows) > limit and jobs else ""
        return Page(jobs, following)

    def _last_before(self, epoch: str, at_us: int) -> int:
        row = self._connection.execute(
            "SELECT last FROM segments WHERE epoch = ? AND last_at_us <= ? ORDER BY first DESC LIMIT 1", (epoch, at_us)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def _at(self, epoch: str, sequence: int) -> tuple[str, int] | None:
        row = self._connection.execute(
            "SELECT id FROM segments WHERE epoch = ? AND first <= ? AND records > 0 ORDER BY first DESC LIMIT 1",
            (epoch, sequence),
        ).fetchone()
        if row is None:
            return None
        found = self._connection.execute(
            "SELECT job, sequence FROM jobs WHERE segment = ? AND sequence <= ? ORDER BY sequence DESC LIMIT 1",
            (row[0], sequence),
        ).fetchone()
        return None if found is None else (found[0], found[1])


def _values(row: Row, segment: int | None) -> tuple[object, ...]:
    words, spot = row.summary, row.spot
    return (
        words.job, words.tenant, words.function, words.version, words.lane, words.state, words.reason, words.start,
        words.attempt, words.submitted_at, words.finished_at, words.wall_ms, spot.sequence, row.at_us, segment,
        spot.block_offset, spot.block_length, spot.offset, spot.meta_length, spot.body_length,
    )  # fmt: skip
