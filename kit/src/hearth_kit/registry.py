"""The function registry as every service reads it: versions are immutable, so a copy never goes stale."""

import logging
from collections.abc import Callable

from pydantic import ValidationError

from hearth_contracts import functions, streams
from hearth_contracts.functions import FunctionHead, FunctionVersion
from hearth_kit.background import Background
from hearth_kit.bus import Bus, Stored, Subscription
from hearth_kit.kv import gone, looks
from hearth_kit.message import Message

_log = logging.getLogger(__name__)

_PREFIX = "$KV.FUNCTIONS."


class Registry:
    """Heads and versions in memory, kept current; `version` asks the broker for what was written a moment ago."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._heads: dict[str, tuple[int, FunctionHead]] = {}
        self._versions: dict[str, tuple[int, FunctionVersion]] = {}
        self._hooks: list[Callable[[FunctionHead], None]] = []
        self._subscription: Subscription | None = None
        self._looks = Background("registry")

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(f"{_PREFIX}>", self._heard)
        self._bus.on_reconnect(self.reload)
        await self.reload()

    def on_change(self, hook: Callable[[FunctionHead], None]) -> None:
        """Told each head that changes, and at once every head known already."""
        self._hooks.append(hook)
        for _, head in self._heads.values():
            hook(head)

    async def reload(self) -> None:
        for stored in await self._bus.get_last_each(streams.FUNCTIONS.name, [f"{_PREFIX}>"]):
            self._take(stored)

    def heads(self) -> list[FunctionHead]:
        return [head for _, head in self._heads.values()]

    def head(self, tenant: str, function: str) -> FunctionHead | None:
        known = self._heads.get(f"{tenant}.{function}")
        return None if known is None or known[1].deleted else known[1]

    def known(self, tenant: str, function: str, version: int) -> FunctionVersion | None:
        known = self._versions.get(f"{tenant}.{function}.{version}")
        return None if known is None else known[1]

    async def version(self, tenant: str, function: str, version: int) -> FunctionVersion | None:
        key = functions.registry_key(tenant, function, version)
        if key not in self._versions:
            await self._look(key)
        return self.known(tenant, function, version)

    async def fresh_head(self, tenant: str, function: str) -> tuple[int, FunctionHead] | None:
        """The head and its revision as the broker has it now, deleted or not: what a writer builds on."""
        key = functions.registry_key(tenant, function)
        await self._look(key)
        return self._heads.get(key)

    def _heard(self, message: Message) -> None:
        # A subscriber also hears a write that the stream refused: what is heard is only a reason to look.
        self._looks.start(self._look_for(message))

    async def _look_for(self, heard: Message) -> None:
        async for stored in looks(self._bus, streams.FUNCTIONS.name, heard):
            if stored is not None:
                self._take(stored)

    async def _look(self, key: str) -> None:
        stored = await self._bus.get_last(streams.FUNCTIONS.name, _PREFIX + key)
        if stored is not None:
            self._take(stored)

    def _take(self, stored: Stored) -> None:
        key = stored.subject.removeprefix(_PREFIX)
        known = self._versions.get(key) or self._heads.get(key)
        if gone(stored) or (known is not None and known[0] >= stored.sequence):
            return
        try:
            if key.count(".") == 2:
                self._versions[key] = (stored.sequence, FunctionVersion.model_validate_json(stored.message.body))
                return
            head = FunctionHead.model_validate_json(stored.message.body)
        except ValidationError:
            # Of a later release, or broken: that function is unknown here, all others work.
            _log.error("an entry of the registry does not parse", extra={"key": key})
            return
        self._heads[key] = (stored.sequence, head)
        for hook in self._hooks:
            hook(head)
