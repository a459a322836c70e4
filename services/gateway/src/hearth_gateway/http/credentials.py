"""The caller's key, from the request's headers."""

from collections.abc import Mapping

from hearth_gateway.adapters.keyring import SECRET_LENGTH_MAX, Caller, KeyRing
from hearth_gateway.errors import Unauthorized

Headers = Mapping[bytes, bytes]


def caller(headers: Headers, keyring: KeyRing) -> Caller:
    """Who asks, counted against their rate. Raises `Unauthorized` or `RateLimited`."""
    secret = headers.get(b"x-api-key")
    if secret is None:
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized
    secret = secret.strip()
    if not secret or len(secret) > SECRET_LENGTH_MAX:
        raise Unauthorized
    found = keyring.caller(secret.decode("latin-1"))
    keyring.count(found.hash)
    return found
