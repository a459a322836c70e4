"""Ports on the loopback: chosen once, kept, and told apart from those that others use."""

import random
import socket
from collections.abc import Iterable
from typing import Final

LOOPBACK: Final = "127.0.0.1"
#: Below the range from which kernels take the local ports of outgoing connections: what is free here stays free.
CHOICE: Final = range(20_000, 32_000)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose(names: Iterable[str], kept: dict[str, int], *, preferred: dict[str, int] | None = None) -> dict[str, int]:
    """A port for each name: the one it had before, else the preferred one, else any, as long as it is free."""
    chosen: dict[str, int] = {}
    for name in names:
        candidates = [kept.get(name), (preferred or {}).get(name), *random.sample(CHOICE, 200)]
        chosen[name] = next(port for port in candidates if port and port not in chosen.values() and is_free(port))
    return chosen
