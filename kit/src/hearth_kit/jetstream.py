"""What the broker answers to questions: messages read back by direct get, and the administration of streams and consumers."""

import asyncio
import datetime as dt
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from hearth_contracts.streams import SECOND_NS, Stream
from hearth_kit import errors
from hearth_kit.bus import ConsumerInfo, ConsumerSpec, Stored, StreamInfo
from hearth_kit.message import Message

#: Broker errors by number (its errors.json): no such stream, no such consumer, the name is in use with other settings.
_NOT_FOUND: Final = frozenset({10059, 10014})
#: One page of a batched direct get: what the broker sends in one go must not make a slow reader of us.
PAGE_MESSAGES: Final = 1000
PAGE_BYTES: Final = 4 * 1024 * 1024
READ_S: Final = 5.0
#: While nobody serves a stream's reads (it is being recovered, or made again), the question is put again this often.
PAGE_RETRY_S: Final = 0.1


class JetStream:
    """The asking half of `NatsBus`."""

    def __init__(self, api_prefix: str) -> None:
        self._api = api_prefix
        self._loop = asyncio.get_running_loop()

    def _ask(self, subject: str, body: bytes, block: bytes, timeout_s: float, *, retry: bool) -> "asyncio.Future[Message]":
        """One question, one answer."""
        raise NotImplementedError

    def _ask_many(self, subject: str, body: bytes, collect: Callable[[Message], None]) -> Callable[[], None]:
        """One question, many answers; returns what ends the listening."""
        raise NotImplementedError

    # Reading back

    async def get_last(self, stream: str, subject: str) -> Stored | None:
        return _stored(await self._ask(f"{self._api}.DIRECT.GET.{stream}.{subject}", b"", b"", READ_S, retry=True))

    async def get_at(self, stream: str, sequence: int) -> Stored | None:
        return await self._direct(stream, {"seq": sequence})

    async def get_next(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        return await self._direct(stream, {"seq": sequence, "next_by_subj": subject})

    async def _direct(self, stream: str, query: dict[str, Any]) -> Stored | None:
        return _stored(await self._ask(f"{self._api}.DIRECT.GET.{stream}", json.dumps(query).encode(), b"", READ_S, retry=True))

    async def get_last_each(self, stream: str, subjects: Sequence[str], *, messages_max: int = 0) -> list[Stored]:
        """The stream from its start, page by page (broker 2.11's batched direct get), keeping each subject's last.

        Its `multi_last` question looks made for this, but the broker refuses it altogether past 1,024 subjects.
        """
        last: dict[str, Stored] = {}
        read = 0
        for subject in subjects:
            start, more = 1, True
            while more and not 0 < messages_max <= read:
                page, more = await self._page(stream, subject, start)
                read += len(page)
                for stored in page:
                    last[stored.subject] = stored
                    start = stored.sequence + 1
        return sorted(last.values(), key=lambda stored: stored.sequence)

    async def _page(self, stream: str, subject: str, start: int) -> tuple[list[Stored], bool]:
        """Messages from `start` on, and whether there are more."""
        deadline = self._loop.time() + 2 * READ_S
        while True:
            answer = await self._one_page(stream, subject, start, deadline)
            if answer is not None:
                return answer
            if self._loop.time() >= deadline:
                raise errors.StreamMissing(stream)
            await asyncio.sleep(PAGE_RETRY_S)

    async def _one_page(self, stream: str, subject: str, start: int, deadline: float) -> tuple[list[Stored], bool] | None:
        done: asyncio.Future[bool | None] = self._loop.create_future()
        page: list[Stored] = []

        def collect(message: Message) -> None:
            code, text = message.status
            if done.done():
                return
            if code == 0:
                stored = _stored(message)
                if stored is not None:
                    page.append(stored)
            elif code == 204:
                done.set_result(int(message.headers.get("Nats-Num-Pending", "0")) > 0)
            elif code == 404:
                done.set_result(False)
            elif code == 503:
                done.set_result(None)
            else:
                done.set_exception(errors.ApiError(f"{stream}: {code} {text}", api_code=code))

        query = {"next_by_subj": subject, "seq": start, "batch": PAGE_MESSAGES, "max_bytes": PAGE_BYTES}
        end = self._ask_many(f"{self._api}.DIRECT.GET.{stream}", json.dumps(query).encode(), collect)
        try:
            more = await asyncio.wait_for(done, max(0.1, min(READ_S, deadline - self._loop.time())))
        except TimeoutError:
            return None  # lost with a connection, perhaps: ask again until the deadline
        finally:
            end()
        return None if more is None else (page, more)

    # Administration

    async def _api_call(self, subject: str, body: dict[str, Any] | None = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
        message = await self._ask(
            f"{self._api}.{subject}", json.dumps(body).encode() if body is not None else b"", b"", timeout_s, retry=True
        )
        answer: dict[str, Any] = json.loads(message.body)
        error = answer.get("error")
        if error is not None:
            raise errors.ApiError(
                f"{subject}: {error.get('description')}", api_code=error.get("code", 0), err_code=error.get("err_code", 0)
            )
        return answer

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        config: dict[str, Any] = {
            "durable_name": spec.name,
            "name": spec.name,
            "ack_policy": "all" if spec.ack_all else "explicit",
            "ack_wait": int(spec.ack_wait_s * SECOND_NS),
            "deliver_policy": "new" if spec.deliver_new else "all",
            "max_ack_pending": spec.max_ack_pending,
            "max_deliver": -1,
            "max_waiting": 512,
        }
        subject = f"CONSUMER.CREATE.{spec.stream}.{spec.name}"
        if spec.filter_subject:
            config["filter_subject"] = spec.filter_subject
            subject = f"{subject}.{spec.filter_subject}"
        await self._api_call(subject, {"stream_name": spec.stream, "config": config})

    async def delete_consumer(self, stream: str, name: str) -> None:
        try:
            await self._api_call(f"CONSUMER.DELETE.{stream}.{name}")
        except errors.ApiError as error:
            if error.err_code not in _NOT_FOUND:
                raise

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        try:
            answer = await self._api_call(f"CONSUMER.INFO.{stream}.{name}")
        except errors.ApiError as error:
            if error.err_code in _NOT_FOUND:
                return None
            raise
        return ConsumerInfo(
            pending=answer["num_pending"],
            ack_pending=answer["num_ack_pending"],
            ack_floor=answer["ack_floor"]["stream_seq"],
            delivered=answer["delivered"]["stream_seq"],
        )

    async def consumer_names(self, stream: str) -> list[str]:
        names: list[str] = []
        while True:
            answer = await self._api_call(f"CONSUMER.NAMES.{stream}", {"offset": len(names)})
            page = answer.get("consumers") or []
            names.extend(page)
            if not page or len(names) >= answer.get("total", 0):
                return names

    async def ensure_stream(self, stream: Stream, *, replicas: int = 1) -> None:
        # Asked first: the broker looks for room before it sees that a stream is there, and its store has room for one of each.
        if await self.stream_info(stream.name) is None:
            await self._api_call(f"STREAM.CREATE.{stream.name}", stream.config(replicas=replicas))
        else:  # made with other settings, by an older release or by hand
            await self._api_call(f"STREAM.UPDATE.{stream.name}", stream.config(replicas=replicas))

    async def stream_info(self, name: str) -> StreamInfo | None:
        try:
            answer = await self._api_call(f"STREAM.INFO.{name}")
        except errors.ApiError as error:
            if error.err_code in _NOT_FOUND:
                return None
            raise
        state = answer["state"]
        return StreamInfo(
            state["messages"], state["bytes"], state["first_seq"], state["last_seq"], answer["config"], answer["created"]
        )

    async def purge(self, stream: str, *, subject: str = "", below_sequence: int = 0) -> int:
        body: dict[str, Any] = {}
        if subject:
            body["filter"] = subject
        if below_sequence:
            body["seq"] = below_sequence
        answer = await self._api_call(f"STREAM.PURGE.{stream}", body, timeout_s=30.0)
        return int(answer.get("purged", 0))


def _stored(message: Message) -> Stored | None:
    code, text = message.status
    if code == 404:
        return None
    if code:
        raise errors.ApiError(f"{code} {text}", api_code=code)
    headers = message.headers
    at = dt.datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp()
    return Stored(headers["Nats-Subject"], int(headers["Nats-Sequence"]), at, message)
