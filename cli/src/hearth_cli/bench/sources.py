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
    beside_calls: int
    calls_s: float
    """What these calls may take: a slow machine makes fewer."""
    cold: int
    load_s: float
    beside_s: float
    """Of each load on a platform started beside."""
    pairs: int
    """Slices with tracing and without."""
    slice_s: float
    total_s: float
    """Once so much has gone by, no more pairs than are needed."""
    large_mib: int


QUICK: Final = Scale(
    calls=1000, beside_calls=500, calls_s=4, cold=15, load_s=4, beside_s=2.5, pairs=12, slice_s=0.8, total_s=150, large_mib=128
)  # fmt: skip
FULL: Final = Scale(
    calls=5000, beside_calls=2000, calls_s=60, cold=60, load_s=20, beside_s=10, pairs=30, slice_s=1.5, total_s=3600, large_mib=1024
)  # fmt: skip


def fresh(name: str) -> str:
    """A name that no function has."""
    return f"bench-{name}-{secrets.token_hex(3)}"


def unique(source: str) -> str:
    """The same function under a digest that was never seen: nothing can have cached it."""
    return f"# {secrets.token_hex(8)}\n{source}"
