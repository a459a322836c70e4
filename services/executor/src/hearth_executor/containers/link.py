"""The executor's end of a link: frames out with credit, frames in to a handler. What carries the bytes is another's."""

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from hearth_executor.containers import frames
from hearth_executor.containers.frames import Frame, Kind
from hearth_executor.errors import LinkFailed

KEY_BYTES = 32

Channel = tuple[int, int, int]
"""Call, kind, stream."""


class Wire(Protocol):
    """What carries a link's bytes. `write` never blocks: credit bounds what can be under way."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Link:
    """Whoever makes it gives it its `wire` before anything is sent, and calls `feed` and `lose`. Frames go to `on_frame`,
    in order. When the link is lost, by either side, `on_lost` is called once with the reason."""

    wire: Wire

    def __init__(self, *, keyed: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._key = secrets.token_bytes(KEY_BYTES) if keyed else None
        self._mac: frames.Mac | None = None
        from_sandbox = None if self._key is None else frames.Mac(self._key, frames.FROM_SANDBOX)
        self._decoder = frames.Decoder(from_sandbox)
        self._credit: dict[Channel, int] = {}
        self._waiters: dict[Channel, asyncio.Future[None]] = {}
        self._hello: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.on_frame: Callable[[Frame], None] = _unexpected
        self.on_lost: Callable[[str], None] = _ignore
        self.lost: str | None = None
        """Why the link is gone; None while it is there."""

    async def greet(self, timeout_s: float) -> dict[str, Any]:
        """Shake hands. On a keyed link the key is in this first frame, and every frame after it carries a code."""
        hello: dict[str, Any] = {"protocol": frames.PROTOCOL}
        if self._key is not None:
            hello["key"] = self._key.hex()
        self._write(frames.encode(Kind.HELLO, json.dumps(hello).encode()))
        if self._key is not None:
            self._mac = frames.Mac(self._key, frames.TO_SANDBOX)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await asyncio.shield(self._hello)
        except TimeoutError:
            self.lose("the supervisor did not answer")
            raise LinkFailed("the supervisor did not answer") from None
        if answer.get("protocol") != frames.PROTOCOL:
            self.lose("the supervisor speaks another protocol")
            raise LinkFailed(f"the supervisor speaks protocol {answer.get('protocol')!r}, not {frames.PROTOCOL}")
        return answer

    def send(self, kind: int, payload: bytes = b"", *, call: int = 0, stream: int = 0, flags: int = 0) -> None:
        """A frame that needs no credit."""
        self._write(frames.encode(kind, payload, call=call, stream=stream, flags=flags))

    async def send_data(self, kind: int, data: bytes, *, call: int = 0, stream: int = 0) -> None:
        """Send a body's bytes, waiting for credit as needed. Raises `LinkFailed` when the link is lost meanwhile."""
        channel = (call, kind, stream)
        for start in range(0, len(data), frames.DATA_BYTES_MAX):
            chunk = data[start : start + frames.DATA_BYTES_MAX]
            while self._credit.setdefault(channel, frames.WINDOW_BYTES) < len(chunk):
                waiter = self._waiters[channel] = self._loop.create_future()
                if self.lost is not None:
                    raise LinkFailed(self.lost)
                await waiter
            self._credit[channel] -= len(chunk)
            self.send(kind, chunk, call=call, stream=stream)

    def give_credit(self, call: int, kind: int, stream: int, size: int) -> None:
        self.send(Kind.CREDIT, frames.CREDIT_BODY.pack(kind, size), call=call, stream=stream)

    def forget(self, call: int) -> None:
        """Drop what is kept of a call's channels. Whoever still waits for credit on one is woken with an error."""
        for channel in [channel for channel in self._credit if channel[0] == call]:
            del self._credit[channel]
            self._wake(channel, LinkFailed("the call is over"))

    def feed(self, data: bytes) -> None:
        if self.lost is not None:
            return
        try:
            for frame in self._decoder.feed(data):
                if frame[0] == Kind.CREDIT:
                    self._credited(frame)
                elif frame[0] == Kind.HELLO and not self._hello.done():
                    self._hello.set_result(frames.document(frame[4]))
                else:
                    self.on_frame(frame)
        except frames.ProtocolError as error:
            self.lose(f"the sandbox broke the protocol: {error}")

    def lose(self, why: str) -> None:
        if self.lost is not None:
            return
        self.lost = why
        self.wire.close()
        if not self._hello.done():
            self._hello.set_exception(LinkFailed(why))
            self._hello.exception()  # whoever waits gets it; nobody waiting is no error
        for channel in list(self._waiters):
            self._wake(channel, LinkFailed(why))
        self.on_lost(why)

    def _write(self, frame: bytes) -> None:
        if self.lost is None:
            self.wire.write(frame if self._mac is None else frame + self._mac.tag(frame))

    def _credited(self, frame: Frame) -> None:
        _, _, stream, call, payload = frame
        if len(payload) != frames.CREDIT_BODY.size:
            raise frames.ProtocolError("a credit frame of a wrong size")
        kind, size = frames.CREDIT_BODY.unpack(payload)
        channel = (call, kind, stream)
        if channel in self._credit:
            if self._credit[channel] + size > frames.WINDOW_BYTES:
                raise frames.ProtocolError("more credit than was spent")
            self._credit[channel] += size
            self._wake(channel, None)

    def _wake(self, channel: Channel, error: Exception | None) -> None:
        waiter = self._waiters.pop(channel, None)
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _unexpected(frame: Frame) -> None:
    raise frames.ProtocolError(f"a frame of type {frame[0]} out of turn")


def _ignore(why: str) -> None:
    pass
