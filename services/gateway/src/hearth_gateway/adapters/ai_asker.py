"""Questions to the private model node, by way of the ai-proxy: the only thing that knows the node's address."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from hearth_contracts import registry, subjects
from hearth_contracts.ai import AiRequest, AiTokens
from hearth_contracts.errors import UndecodableMessage
from hearth_gateway.adapters.fleet import Fleet
from hearth_gateway.errors import NoModelServer, Overloaded
from hearth_kit.bus import Bus
from hearth_kit.message import Message

#: How often a silent answer is looked after: an ai-proxy that is gone answers nothing more.
LOOK_S: Final = 2.0
PIECES_MAX: Final = 4096
ASKED_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Piece:
    tokens: AiTokens
    data: bytes


class AiAsker:
    def __init__(self, *, bus: Bus, fleet: Fleet) -> None:
        self._bus = bus
        self._fleet = fleet
        self._asked: dict[str, asyncio.Queue[Piece]] = {}

    async def start(self) -> None:
        await self._bus.subscribe(subjects.ai_tokens_of(self._bus.instance), self._heard)

    def _heard(self, message: Message) -> None:
        queue = self._asked.get(message.subject.rpartition(".")[2])
        if queue is None or queue.full():
            return
        try:
            queue.put_nowait(Piece(message.meta(AiTokens), message.body))
        except UndecodableMessage:
            return

    async def ask(self, *, tenant: str, path: str, model: str, body: bytes) -> AsyncIterator[Piece]:
        """The answer, piece by piece. Raises `NoModelServer` when no ai-proxy is there to ask."""
        if not self._fleet.alive(registry.AI_PROXY):
            raise NoModelServer("no ai-proxy is running")
        if len(self._asked) >= ASKED_MAX:
            raise Overloaded
        request = secrets.token_hex(12)
        queue: asyncio.Queue[Piece] = asyncio.Queue(PIECES_MAX)
        self._asked[request] = queue
        try:
            meta = AiRequest(request=request, asker=self._bus.instance, tenant=tenant, path=path, model=model)
            await self._bus.publish(
                subjects.ai_request(model or "none"), body, meta=meta, contract="ai-request.v1", msg_id=request
            )
            while True:
                piece = await self._next(queue)
                yield piece
                if piece.tokens.last:
                    return
        finally:
            del self._asked[request]

    async def _next(self, queue: "asyncio.Queue[Piece]") -> Piece:
        while True:
            try:
                return await asyncio.wait_for(queue.get(), LOOK_S)
            except TimeoutError:
                if not self._fleet.alive(registry.AI_PROXY):
                    raise NoModelServer("the ai-proxy has gone away") from None
