"""The client library, with its hot path replaced: the only file that touches its insides.

`nats.aio.client.Client` is kept for connecting, authentication, reconnecting and re-subscribing. Two of its private
methods are by-passed, each for a reproduced reason: delivery goes through a queue, a task and a header parser per message
(2-3x the cost of a direct call), and an exception there ends the read loop silently. The version is pinned by the lock
and `tests/test_wire.py` fails when these insides move.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from hearth_contracts.errors import InvalidName
from hearth_kit.errors import NotConnected, PayloadTooLarge
from hearth_kit.wire_reader import WireReader

Deliver = Callable[[str, str, bytes, bytes], None]
"""(subject, reply, header block, body). Called from the read loop: must be quick."""

#: What may wait while the broker is away; more is refused, so that a long outage cannot fill the memory.
BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024
#: What may stand in a subject on the wire: a space or a line break would end the command early, and the broker ends a
#: connection whose command line passes 4096 bytes.
_SUBJECT: Final = re.compile(r"[!-~]{1,1800}")

#: How long the end of a subscription waits for what is still on its way.
FLUSH_S: Final = 2

_log = logging.getLogger(__name__)


class Wire(Client):
    """A connection whose sends and deliveries are plain calls."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Deliver] = {}
        self._kicked = False
        self._unsent_bytes = 0
        """What the socket had not taken when we last looked."""
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        """When the broker last said anything, by the loop's clock."""

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
        sid = self._sid + 1
        self._direct[sid] = deliver  # before the broker can know of it
        await self.subscribe(subject, queue=queue, cb=_never)
        self._kick()  # whoever hears that we listen may speak at once
        return sid

    async def unlisten(self, sid: int) -> None:
        """Hear no more. What is on its way still reaches `deliver`; then it is forgotten."""
        subscription = self._subs.get(sid)
        if subscription is not None and not self.is_closed:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
                if self.is_connected:
                    await self.flush(timeout=FLUSH_S)
        self._direct.pop(sid, None)

    def send(self, subject: str, body: bytes, reply: str = "", block: bytes = b"") -> None:
        """Put one message on the wire, batched with the others of this turn of the loop."""
        if _SUBJECT.fullmatch(subject) is None or (reply and _SUBJECT.fullmatch(reply) is None):
            raise InvalidName("subject", subject if reply == "" else f"{subject} {reply}", "it cannot stand on the wire")
        size = len(block) + len(body)
        if size > self._max_payload:
            raise PayloadTooLarge(f"{size} bytes on {subject}, {self._max_payload} allowed")
        if self.is_closed:
            raise NotConnected("the connection is closed")
        if self._pending_data_size + self._unsent_bytes + size > BUFFER_BYTES_MAX and self._is_backed_up(size):
            raise NotConnected(f"{self._pending_data_size + self._unsent_bytes} bytes wait already")
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
            pending = self._pending
            self._transport.write(pending[0] if len(pending) == 1 else b"".join(pending))
            self._pending = []
            self._pending_data_size = 0
            self._unsent_bytes = self._socket_bytes()

    def _socket_bytes(self) -> int:
        writer = getattr(self._transport, "_io_writer", None)
        return 0 if writer is None else int(writer.transport.get_write_buffer_size())

    def _is_backed_up(self, size: int) -> bool:
        """Whether one more message is too much: a broker that is away, or that is there and does not read."""
        self._kick()
        self._unsent_bytes = self._socket_bytes() if self.is_connected else 0
        return self._pending_data_size + self._unsent_bytes + size > BUFFER_BYTES_MAX

    async def end(self) -> None:
        """Send what waits, if there is somebody to send it to, and close."""
        if self.is_connected:
            with contextlib.suppress(Exception):
                await self.flush(timeout=FLUSH_S)
        else:
            # The library would write it to the lost connection, and stop closing there.
            self._pending = []
            self._pending_data_size = 0
        if not self.is_closed:
            with contextlib.suppress(Exception):
                await self.close()

    async def supervise(self) -> None:
        """Find the two ways in which the library stops for good without saying so, and end them."""
        if self.is_connected and self._reading_task is not None and self._reading_task.done():
            _log.error("the broker's connection is not read any more, connecting anew")
            await self._process_op_err(NotConnected("the read loop has ended"))
        elif self.is_reconnecting and self._reconnection_task is not None and self._reconnection_task.done():
            _log.error("the client has stopped reconnecting")
            await self._close(Client.CLOSED, do_cbs=True)

    async def _read_loop(self) -> None:
        """Give the connection a reader of our own, then see to the lines that are not messages, as long as it lasts."""
        stream: asyncio.StreamReader = getattr(self._transport, "_io_reader")  # noqa: B009 - private, and pinned by a test
        transport: asyncio.Transport = getattr(self._transport, "_io_writer").transport  # noqa: B009
        buffer: bytearray = getattr(stream, "_buffer")  # noqa: B009
        reader = WireReader(transport.get_protocol(), self._heard)
        transport.set_protocol(reader)
        if buffer:
            reader.data_received(bytes(buffer))
            buffer.clear()
        if stream.at_eof():
            reader.eof_received()
        with contextlib.suppress(asyncio.CancelledError):
            try:
                while (line := await reader.lines.get()) is not None:
                    await self._control(line)
                await self._process_op_err(NotConnected("the broker has closed the connection"))
            except Exception as error:
                _log.exception("the broker's connection could not be read")
                await self._process_op_err(error)
            finally:
                reader.stop()

    async def _control(self, line: bytes) -> None:
        self.heard_at = self._loop.time()
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"PING":
                await self._process_ping()
            case b"PONG":
                await self._process_pong()
            case b"-ERR":
                await self._process_err(rest.decode("utf-8", "replace").strip().lower())
            case b"INFO":
                await self._process_info(json.loads(rest))
            case b"+OK":
                pass
            case _:
                await self._process_op_err(NotConnected(f"not the broker's protocol: {line[:80]!r}"))

    def _heard(self, sid: bytes, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        self.heard_at = self._loop.time()
        deliver = self._direct.get(int(sid))
        if deliver is None:
            return  # on its way when its subscription ended
        try:
            deliver(subject.decode(), reply.decode(), block, body)
        except Exception:
            # A handler's bug must not end the reading: the connection would look alive and never be read again.
            _log.exception("a handler failed", extra={"subject": subject.decode(errors="replace")})

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        # The library's ping overtakes what waits, so that its `flush` would answer for messages that were never sent.
        self._kick()
        await super()._send_ping(future)

    async def _process_pong(self) -> None:
        # The library sets the result of a flush that has given up, too: an exception that would end the read loop.
        if self._pongs:
            waiting = self._pongs.pop(0)
            if not waiting.done():
                waiting.set_result(True)
        self._pings_outstanding = 0


async def _never(message: Msg) -> None:
    raise AssertionError(f"delivered past the direct path: {message.subject}")
