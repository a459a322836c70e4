"""The pull pump: messages of a durable consumer, asked for ahead of need.

A pull that waits at the broker costs a message no round trip. Each request carries its own reply token, since only the
broker's status lines tell which request expired with how much unserved; messages themselves arrive on the one
subscription.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Final

from hearth_kit import errors, metrics
from hearth_kit.bus import Handler
from hearth_kit.message import ACK_PREFIX, Message, Sender
from hearth_kit.wire import Wire

_log = logging.getLogger(__name__)

#: A request that nobody serves ends at the broker after this, and is made again.
EXPIRES_S: Final = 30.0
#: While a request waits, the broker says so this often; silence of twice that means it is gone.
HEARTBEAT_S: Final = 4.0
#: Requests of one pump that wait at once; what is granted beyond is asked for as one when the next is served. The broker
#: keeps 512 of a consumer and forgets more without a word.
REQUESTS_MAX: Final = 64
#: After an error (no such consumer, no leader) the next request waits this long.
RETRY_S: Final = 0.25


class PullPump:
    """See `hearth_kit.bus.Pump`."""

    def __init__(
        self,
        *,
        wire: Wire,
        sender: Sender,
        request_subject: str,
        inbox: str,
        handler: Handler,
        batch: int,
        auto: bool,
        lost: Callable[[str], None] | None,
        stopped: "Callable[[PullPump], None]",
    ) -> None:
        self._wire = wire
        self._sender = sender
        self._subject = request_subject
        self._inbox = inbox
        self._handler = handler
        self._batch = batch
        self._auto = auto
        self._lost = lost
        self._stopped = stopped
        self._allowed = batch if auto else 0
        """Messages this pump may still receive (auto: always `batch`)."""
        self._asked: dict[int, int] = {}
        """Request number -> messages it may still bring."""
        self._number = 0
        self._sid = -1
        self._heard_at = 0.0
        self._retry_at = 0.0
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self.rebinds = 0

    async def start(self) -> None:
        self._sid = await self._wire.listen(f"{self._inbox}.*", self._deliver)
        self._arm()

    async def stop(self) -> None:
        self._stopping = True
        self._stopped(self)
        await self._wire.unlisten(self._sid)

    @property
    def granted(self) -> int:
        return self._allowed

    def grant(self, count: int) -> None:
        self._allowed += count
        self._arm()

    def rearm(self) -> None:
        """Forget what was asked for and ask again: after a reconnect, or when the broker has gone silent."""
        self._asked.clear()
        self._retry_at = 0.0
        self._arm()

    def check(self, now: float) -> None:
        """Called a few times a second."""
        if self._stopping or not self._wire.is_connected:
            return
        if self._asked and now - self._heard_at > 2 * HEARTBEAT_S:
            _log.warning("no sign of the consumer, asking again", extra={"consumer": self._subject})
            self.rebinds += 1
            metrics.REBINDS.inc()
            self.rearm()
        elif self._retry_at and now >= self._retry_at:
            self._retry_at = 0.0
            self._arm()

    def _arm(self) -> None:
        if self._stopping or self._retry_at or not self._wire.is_connected:
            return
        outstanding = sum(self._asked.values())
        # In auto mode half a batch may run out before the next request; granted messages are asked for at once.
        missing = self._allowed - outstanding
        if missing <= 0 or (self._auto and outstanding > self._batch // 2) or len(self._asked) >= REQUESTS_MAX:
            return
        self._number += 1
        self._asked[self._number] = missing
        self._heard_at = self._loop.time()
        request = json.dumps(
            {"batch": missing, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        ).encode()
        try:
            self._wire.send(self._subject, request, f"{self._inbox}.{self._number}")
        except errors.NotConnected:
            self._asked.pop(self._number, None)
            self._retry_at = self._loop.time() + RETRY_S

    def _deliver(self, subject: str, reply: str, block: bytes, body: bytes) -> None:
        self._heard_at = self._loop.time()
        message = Message(subject, reply, block, body, self._sender)
        # A consumer's message has the reply `$JS.ACK...`; the broker's own lines come on our inbox.
        if not reply.startswith(ACK_PREFIX):
            self._status(message)
            return
        if self._stopping or (not self._auto and self._allowed <= 0):
            # On its way when the pump was stopped, or asked for by a request from before a reconnect: somebody else's.
            message.nak()
            return
        self._served()
        if not self._auto:
            self._allowed -= 1
        self._arm()
        self._handler(message)

    def _served(self) -> None:
        """One message came: it counts against the oldest request that is still open."""
        for number, left in self._asked.items():
            if left > 1:
                self._asked[number] = left - 1
            else:
                del self._asked[number]
            return

    def _status(self, message: Message) -> None:
        code, text = message.status
        if code == 100:  # a heartbeat: the request still waits
            return
        number = int(message.subject.rpartition(".")[2])
        self._asked.pop(number, None)
        if code in (404, 408):
            self._arm()
            return
        gone = code == 503 or "deleted" in text.lower() or "not found" in text.lower()
        self._retry_at = self._loop.time() + RETRY_S
        if gone and self._lost is not None:
            self._lost(f"{code} {text}")
        elif not gone:
            _log.warning("pull refused: %s %s", code, text, extra={"consumer": self._subject})
