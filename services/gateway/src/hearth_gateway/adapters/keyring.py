"""API keys: hashed in the bucket KEYS, mirrored in memory. A secret is told once, when it is made."""

import asyncio
import contextlib
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hearth_contracts import streams
from hearth_contracts.keys import ApiKey
from hearth_gateway.domain import rate_limit
from hearth_gateway.domain.rate_limit import Limit
from hearth_gateway.errors import Conflict, KeyInUse, KeyNotFound, RateLimited, Unauthorized
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, WrongLastSequence
from hearth_kit.kv import Bucket, Mirror

SECRET_LENGTH_MIN: Final = 20
SECRET_LENGTH_MAX: Final = 256
#: A revocation that was somehow not heard is found by asking this often (a revoked key is dead within 5 s).
RECHECK_S: Final = 2.0
_ADMIN_NAME: Final = "admin-key-file"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    hash: str
    key: ApiKey

    @property
    def tenant(self) -> str:
        return self.key.tenant

    @property
    def prefix(self) -> str:
        return self.key.prefix


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """Looks keys up and counts their requests."""

    def __init__(self, *, bus: Bus, clock: Clock, default: Limit) -> None:
        self._bus = bus
        self._clock = clock
        self._default = default
        self._bucket: Bucket[ApiKey] = Bucket(bus, streams.KEYS, ApiKey)
        self._mirror: Mirror[ApiKey] | None = None
        self._callers: dict[str, Caller] = {}
        self._limits: dict[str, Limit] = {}
        self._arrivals: dict[str, int] = {}
        self._seen_sequence = 0

    async def start(self) -> None:
        self._mirror = await self._bucket.mirror(self._changed)

    def _changed(self, key_hash: str, key: ApiKey | None) -> None:
        if key is None or key.revoked:
            self._callers.pop(key_hash, None)
            self._limits.pop(key_hash, None)
            return
        self._callers[key_hash] = Caller(key_hash, key)
        if key.rate_per_s:
            self._limits[key_hash] = rate_limit.limit(key.rate_per_s, key.burst or max(1, int(2 * key.rate_per_s)))
        else:
            self._limits[key_hash] = Limit(self._default.interval_ns, key.burst or self._default.burst)

    def caller(self, secret: str) -> Caller:
        """Whose key this is, or `Unauthorized`. The look-up is by hash, so its time tells nothing about any secret."""
        key_hash = hashed(secret)
        caller = self._callers.get(key_hash)
        if caller is None or not hmac.compare_digest(caller.hash, key_hash):
            raise Unauthorized
        return caller

    def count(self, key_hash: str) -> None:
        """One more request, or `RateLimited`."""
        now_ns = int(self._clock.monotonic() * 1e9)
        taken = rate_limit.take(self._arrivals.get(key_hash, 0), self._limits.get(key_hash, self._default), now_ns)
        if isinstance(taken, rate_limit.Denied):
            raise RateLimited(retry_after_s=taken.retry_after_ns / 1e9)
        self._arrivals[key_hash] = taken.arrival_ns

    async def keep(self) -> None:
        """Hears what the subscription may have missed, and forgets counts that no longer matter."""
        while True:
            await asyncio.sleep(RECHECK_S)
            now_ns = int(self._clock.monotonic() * 1e9)
            for key_hash in [key for key, arrival in self._arrivals.items() if arrival <= now_ns]:
                del self._arrivals[key_hash]
            with contextlib.suppress(BusError):
                info = await self._bus.stream_info(streams.KEYS.name)
                if info is not None and info.last_sequence != self._seen_sequence and self._mirror is not None:
                    await self._mirror.reload()
                    self._seen_sequence = info.last_sequence

    # Administration

    async def make(self, *, tenant: str, name: str, admin: bool, rate_per_s: float, burst: int) -> tuple[str, ApiKey]:
        """A new key; its secret is in the answer and nowhere else."""
        prefix = f"hk_{secrets.token_hex(4)}"
        secret = f"{prefix}_{secrets.token_urlsafe(32)}"
        key = ApiKey(
            prefix=prefix, tenant=tenant, name=name, admin=admin, rate_per_s=rate_per_s, burst=burst, created_at=self._clock.now()
        )
        await self._store(hashed(secret), key)
        return secret, key

    async def _store(self, key_hash: str, key: ApiKey) -> None:
        await self._bucket.put(key_hash, key)
        self._changed(key_hash, key)

    async def all(self) -> list[ApiKey]:
        """Every key, oldest first, as the broker has them: the copy here may be a moment behind."""
        return sorted((entry.value for entry in await self._bucket.all()), key=lambda key: (key.created_at, key.prefix))

    async def revoke(self, prefix: str, *, by: Caller) -> ApiKey:
        for entry in await self._bucket.all():
            if entry.value.prefix == prefix:
                break
        else:
            raise KeyNotFound(f"no key starts with {prefix[:40]!r}")
        if entry.key == by.hash:
            raise KeyInUse
        revoked = entry.value.model_copy(update={"revoked": True})
        try:
            await self._bucket.update(entry.key, revoked, revision=entry.revision)
        except WrongLastSequence as error:
            raise Conflict from error
        self._changed(entry.key, revoked)
        return revoked

    async def adopt_file(self, path: Path, *, tenant: str) -> None:
        """The first admin key: made when the file is absent, and known to the platform from here on."""
        secret = _read_or_make(path)
        key_hash = hashed(secret)
        entry = await self._bucket.get(key_hash)
        if entry is not None and entry.value.admin and not entry.value.revoked and entry.value.tenant == tenant:
            self._changed(key_hash, entry.value)
            return
        key = ApiKey(prefix=secret[:11], tenant=tenant, name=_ADMIN_NAME, admin=True, created_at=self._clock.now())
        await self._store(key_hash, key)


def _read_or_make(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"hk_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}\n")
    secret = path.read_text().strip()
    if not SECRET_LENGTH_MIN <= len(secret) <= SECRET_LENGTH_MAX:
        rule = f"a key has {SECRET_LENGTH_MIN} to {SECRET_LENGTH_MAX} characters"
        raise ValueError(f"{path}: {rule}; remove the file to have one made")
    return secret
