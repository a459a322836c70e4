"""The functions that are measured, and how long each row measures."""

import secrets
from dataclasses import dataclass
from typing import Final

HELLO: Final = "def handle(event, context):\n    return {'hello': event.get('name', 'world')}\n"
#: Made piece by piece, so that the function itself needs no memory for it.
LARGE: Final = """
def handle(event, context):
    piece = b"x" * (1024 * 1024)
    for _ in range(int(event["mib"])):
        yield piece
"""
#: The same as an output file.
WRITES: Final = """
def handle(event, context):
    piece = b"x" * (1024 * 1024)
    with context.output("large.bin") as file:
        for _ in range(int(event["mib"])):
            file.write(piece)
"""
#: Keeps its slot until it is cancelled.
STAYS: Final = "import time\n\ndef handle(event, context):\n    time.sleep(3600)\n"

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scale:
    """How long each row measures."""

    calls: int
    """Of one client: a p99 stands on a hundredth of them."""
    cold: int
    load_s: float
    beside_s: float
    """Of each load on a platform started beside."""
    pairs: int
    """Slices with tracing and without."""
    slice_s: float
    large_mib: int


QUICK: Final = Scale(calls=1000, cold=15, load_s=5, beside_s=3, pairs=12, slice_s=0.8, large_mib=128)
FULL: Final = Scale(calls=5000, cold=60, load_s=20, beside_s=10, pairs=30, slice_s=1.5, large_mib=1024)


def fresh(name: str) -> str:
    """A name that no function has."""
    return f"bench-{name}-{secrets.token_hex(3)}"


def unique(source: str) -> str:
    """The same function under a digest that was never seen: nothing can have cached it."""
    return f"# {secrets.token_hex(8)}\n{source}"
