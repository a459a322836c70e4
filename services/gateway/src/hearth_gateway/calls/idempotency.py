"""Callers' own keys: the same key and body is the same job (DELIVERY rule 10)."""

import hashlib
from dataclasses import dataclass
from typing import Final

from hearth_contracts import streams
from hearth_contracts.calls import HttpRequest
from hearth_contracts.keys import Idempotency
from hearth_gateway.calls.bodies import Input
from hearth_gateway.errors import BadRequest, IdempotencyMismatch
from hearth_kit.bus import Bus
from hearth_kit.errors import WrongLastSequence
from hearth_kit.kv import Bucket

KEY_LENGTH_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class Claim:
    """The job a key stands for. `fresh`: it was claimed just now."""

    job: str
    fresh: bool
    at: float
    """Unix seconds of the claim."""


class IdempotencyKeys:
    def __init__(self, bus: Bus) -> None:
        self._bucket: Bucket[Idempotency] = Bucket(bus, streams.IDEMPOTENCY, Idempotency)

    async def claim(
        self, *, tenant: str, function: str, key: str, wanted: Input, http: HttpRequest | None, job: str, now: float
    ) -> Claim:
        """Claim the key for `job`, or learn whose it is. Raises `IdempotencyMismatch` when the body was another."""
        name = _name(tenant, function, key)
        fingerprint = _fingerprint(wanted, http)
        value = Idempotency(job=job, body_sha256=fingerprint, at=now)
        try:
            await self._bucket.create(name, value)
        except WrongLastSequence:
            entry = await self._bucket.get(name)
            if entry is None:
                mark = await self._bucket.last(name)
                await self._bucket.update(name, value, revision=0 if mark is None else mark.sequence)
                return Claim(job, fresh=True, at=now)
            if entry.value.body_sha256 != fingerprint:
                raise IdempotencyMismatch from None
            return Claim(entry.value.job, fresh=entry.value.job == job, at=entry.value.at)
        return Claim(job, fresh=True, at=now)

    async def known(self, *, tenant: str, function: str, key: str, wanted: Input, http: HttpRequest | None) -> Claim | None:
        """Whose the key is, without claiming it. Raises like `claim`."""
        entry = await self._bucket.get(_name(tenant, function, key))
        if entry is None:
            return None
        if entry.value.body_sha256 != _fingerprint(wanted, http):
            raise IdempotencyMismatch
        return Claim(entry.value.job, fresh=False, at=entry.value.at)


def _name(tenant: str, function: str, key: str) -> str:
    if not key or len(key) > KEY_LENGTH_MAX:
        raise BadRequest(f"an Idempotency-Key has 1 to {KEY_LENGTH_MAX} characters")
    return f"{tenant}.{function}.{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"


def _fingerprint(wanted: Input, http: HttpRequest | None) -> str:
    body = wanted.sha256 or hashlib.sha256(wanted.inline).hexdigest()
    if http is None:
        return body
    return hashlib.sha256(f"{http.method} {http.path}?{http.query} {body}".encode()).hexdigest()
