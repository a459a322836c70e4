"""API keys as they are kept: hashed."""

from hearth_contracts.calls import Meta


class ApiKey(Meta):
    """Bucket KEYS, key: the SHA-256 of the secret. The secret itself is told once and kept nowhere."""

    prefix: str
    tenant: str
    name: str = ""
    admin: bool = False
    rate_per_s: float = 0
    """0: the platform's default."""
    burst: int = 0
    created_at: float = 0
    revoked: bool = False


class Idempotency(Meta):
    """Bucket IDEMPOTENCY: what a caller's key stands for."""

    job: str
    body_sha256: str
    at: float


class Lease(Meta):
    """Bucket LEASES: who holds a role. The revision of the key is the fencing epoch."""

    holder: str
    role: str
    at: float


class SpanBatch(Meta):
    """Finished spans of one trace (`spans.v1`). Body: a JSON list of spans."""

    service: str
    instance: str
    count: int = 0
