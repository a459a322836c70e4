"""When a process that ended is started again. Pure."""

from typing import Final

#: The first crash costs no time: the platform is whole again within two seconds.
DELAY_S_FIRST: Final = 0.0
DELAY_S_BASE: Final = 0.25
DELAY_S_MAX: Final = 10.0
#: A process that lived this long is well: its earlier crashes are forgotten.
WELL_AFTER_S: Final = 10.0


def crashes_after(crashes: int, *, lived_s: float) -> int:
    """Crashes in a row, counting the one that ended a life of `lived_s`."""
    return 1 if lived_s >= WELL_AFTER_S else crashes + 1


def delay_s(crashes: int) -> float:
    """How long to wait before the next start."""
    return DELAY_S_FIRST if crashes <= 1 else min(DELAY_S_MAX, DELAY_S_BASE * 2 ** (crashes - 2))
