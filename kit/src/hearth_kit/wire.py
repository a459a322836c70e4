"""The client library, with its hot path replaced: the only file that touches its insides.

`nats.aio.client.Client` is kept for connecting, authentication, reconnecting and re-subscribing. Two of its private
methods are by-passed, each for a reproduced reason: delivery goes through a queue, a task and a header parser per message
(2-3x the cost of a direct call), and an exception there ends the read loop silently. The version is pinned by the lock
and `tests/test_wire.py` fails when these insides move.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from hearth_kit.errors import NotConnected, PayloadTooLarge

Deliver = Callable[[str, str, bytes, bytes], None]
"""(subject, reply, header block, body). Called from the read loop: must be quick."""

#: What may wait while the broker is away; more is refused, so that a long outage cannot fill the memory.
BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024

_log = logging.getLogger(__name__)


class Wire(Client):
    """A connection whose sends and deliveries are plain calls."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Deliver] = {}
        self._kicked = False
        self.bytes_in_at = 0.0
        self._loop = asyncio.get_running_loop()

    @property
    def payload_bytes_max(self) -> int:
        return int(self._max_payload)

    @property
    def buffered_bytes(self) -> int:
        return int(self._pending_data_size)

    @property
    def server_version(self) -> str:
        return str(self._server_info.get("version", ""))

    async def listen(self, subject: str, deliver: Deliver, queue: str = "") -> int:
        """Subscribe; messages go straight to `deliver`. Survives reconnects. Returns an id for `unlisten`."""
        subscription = await self.subscribe(subject, queue=queue, cb=_never)
        sid = int(subscription._id)
        self._direct[sid] = deliver
        return sid

    async def unlisten(self, sid: int) -> None:
        self._direct.pop(sid, None)
        subscription = self._subs.get(sid)
        if subscription is not None and not self.is_closed:
            await subscription.unsubscribe()

    def send(self, subject: str, body: bytes, reply: str = "", block: bytes = b"") -> None:
        """Put one message on the wire, batched with the others of this turn of the loop."""
        size = len(block) + len(body)
        if size > self._max_payload:
            raise PayloadTooLarge(f"{size} bytes on {subject}, {self._max_payload} allowed")
        if self.is_closed:
            raise NotConnected("the connection is closed")
        if not self.is_connected and self._pending_data_size + size > BUFFER_BYTES_MAX:
            raise NotConnected(f"{self._pending_data_size} bytes wait already")
        if block:
            head = f"HPUB {subject} {reply} {len(block)} {size}\r\n" if reply else f"HPUB {subject} {len(block)} {size}\r\n"
            command = b"".join((head.encode(), block, body, b"\r\n"))
        else:
            head = f"PUB {subject} {reply} {size}\r\n" if reply else f"PUB {subject} {size}\r\n"
            command = b"".join((head.encode(), body, b"\r\n"))
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        """Write what this turn of the loop has gathered. While the broker is away it stays for the reconnect."""
        self._kicked = False
        if self._pending and self.is_connected and self._transport is not None:
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.bytes_in_at = self._loop.time()
        deliver = self._direct.get(sid)
        if deliver is None:
            await super()._process_msg(sid, subject, reply, data, headers)  # pyright: ignore[reportArgumentType]
            return
        try:
            deliver(subject.decode(), reply.decode(), headers or b"", data)
        except Exception:
            # A handler's bug must not end the read loop: the connection would look alive and never read again.
            _log.exception("a handler failed", extra={"subject": subject.decode(errors="replace")})

    async def _process_pong(self) -> None:
        self.bytes_in_at = self._loop.time()
        await super()._process_pong()


async def _never(message: Msg) -> None:
    raise AssertionError(f"delivered past the direct path: {message.subject}")


Options = dict[str, Any]
