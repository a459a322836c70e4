"""Answers about records that have left the broker: one job, or a page of history."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from hearth_contracts.calls import BODY_BYTES_MAX, ArchiveQuery, Body, Record
from hearth_contracts.errors import UndecodableMessage
from hearth_kit.message import CONTRACT, META, Message
from hearth_kit.objects import Objects
from hearth_persister import metrics
from hearth_persister.adapters.index import Place
from hearth_persister.domain import segment
from hearth_persister.domain.entry import output_part
from hearth_persister.domain.segment import Piece
from hearth_persister.errors import PersisterError
from hearth_persister.service import Line

_log = logging.getLogger(__name__)

#: A page's jobs at most: with their words under half of what a message may hold.
PAGE_JOBS_MAX: Final = 1000
MISSING: Final = "Hearth-Missing"
ERROR: Final = "Hearth-Error"
BAD_QUERY: Final = "E_BAD_QUERY"
UNREADABLE: Final = "E_STORE_UNREADABLE"
#: Questions about jobs that do not exist must not have a standby list the store each time.
FRESH_S: Final = 0.2

Answer = tuple[bytes, Mapping[str, str]]


class Archive:
    """Asks the stores one after the other: any that holds a record will do."""

    def __init__(self, *, lines: Sequence[Line], objects: Objects) -> None:
        self._lines = lines
        self._objects = objects
        self._restoring: dict[str, asyncio.Lock] = {}

    async def answer(self, message: Message) -> None:
        """Answer one request; a question that cannot be read is answered like one without a result."""
        try:
            query = message.meta(ArchiveQuery)
            if query.job:
                body, headers = await self._record(query)
            else:
                body, headers = await self._page(query)
        except (UndecodableMessage, ValueError) as error:
            _log.warning("a question to the archive was refused: %s", error)
            metrics.QUERIES.labels("refused").inc()
            refused = json.dumps({"jobs": [], "next": "", "error": str(error)[:500]}).encode()
            message.respond(refused, {ERROR: BAD_QUERY})
            return
        kind = "unreadable" if ERROR in headers else "missing" if MISSING in headers else "record" if query.job else "page"
        metrics.QUERIES.labels(kind).inc()
        message.respond(body, headers)

    def _in_order(self) -> list[Line]:
        """Those that are written to now first: they know most."""
        return sorted(self._lines, key=lambda line: (line.breaker.open, not line.active))

    async def _record(self, query: ArchiveQuery) -> Answer:
        """The record of the first store that has it. "Missing" is proof to whoever asks: only what every store has said."""
        unread: list[str] = []
        for line in self._in_order():
            try:
                found = await self._find(line, query)
            except (PersisterError, sqlite3.Error, ValueError) as error:  # ValueError: what lies there is no record
                _log.warning("a store could not answer: %s", error, extra={"store": line.store.name})
                unread.append(f"{line.store.name}: {error}")
                continue
            if found is not None:
                return found
        return _unreadable(unread) if unread else (b"", {MISSING: "1"})

    async def _find(self, line: Line, query: ArchiveQuery) -> Answer | None:
        place = await line.index.place(query.tenant, query.job)
        if place is None and not line.active:
            await line.chain.catch_up(fresh_s=FRESH_S)  # another process writes: it may have written this a moment ago
            place = await line.index.place(query.tenant, query.job)
        if place is None:
            return None
        spot = place.spot
        block = await line.store.get(place.key, start=spot.block_offset, length=spot.block_length)
        piece = await asyncio.to_thread(segment.cut, block, spot)
        await self._put_bodies_back(line, place, piece, query.output)
        text = piece.meta.decode()
        return piece.body, {META: text, CONTRACT: "record.v1"}

    async def _put_bodies_back(self, line: Line, place: Place, piece: Piece, output: str) -> None:
        """Large bodies that the broker no longer holds become objects again, under their old ids, for a day. Of the output
        files only the one that is asked for."""
        record = Record.model_validate_json(piece.meta)
        parts = {"input": record.input, "result": record.ending.result, "log": record.log}
        for number, file in enumerate(record.ending.outputs, 1):
            if file.object == output:
                kind = file.content_type or "application/octet-stream"
                parts[output_part(number)] = Body(content_type=kind, size=file.size, object=file.object)
        for part, body in parts.items():
            if not body.object:
                continue
            lock = self._restoring.setdefault(body.object, asyncio.Lock())
            async with lock:
                if await self._objects.head("bodies", body.object) is None:
                    await self._put_back(line, place, part, body)
            if not lock.locked():
                self._restoring.pop(body.object, None)

    async def _put_back(self, line: Line, place: Place, part: str, body: Body) -> None:
        directory = await line.chain.directory(place.key)
        row = directory.row(place.spot.sequence) if directory is not None else None
        stored = next((one for one in row.objects if one.part == part), None) if row is not None else None
        if stored is None or stored.missing:
            return
        writer = self._objects.writer("bodies", body.object, bytes_max=BODY_BYTES_MAX, content_type=body.content_type)
        async for chunk in line.store.read(stored.key):
            await writer.write(chunk)
        await writer.finish()

    async def _page(self, query: ArchiveQuery) -> Answer:
        limit = max(1, min(query.limit, PAGE_JOBS_MAX))
        unread: list[str] = []
        for line in self._in_order():
            try:
                page = await line.index.page(query, limit=limit)
            except sqlite3.Error as error:
                _log.warning("an index could not answer: %s", error, extra={"store": line.store.name})
                unread.append(f"{line.store.name}: {error}")
                continue
            return json.dumps({"jobs": page.jobs, "next": page.next}, separators=(",", ":")).encode(), {
                "Content-Type": "application/json"
            }
        return _unreadable(unread)


def _unreadable(unread: Sequence[str]) -> Answer:
    return json.dumps({"error": "; ".join(unread)[:500]}).encode(), {ERROR: UNREADABLE}
