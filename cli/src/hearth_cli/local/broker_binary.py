"""Which nats-server runs: found, and held against the versions that Hearth knows."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hearth_cli.errors import BrokerUnfit

#: The first version with `feature_flags`; per-message TTL, schedules and strict requests are older.
OLDEST: Final = (2, 14, 0)
#: A new major version may change what an acknowledgement means.
TOO_NEW: Final = (3, 0, 0)
_VERSION: Final = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class BrokerBinary:
    """A nats-server that passed the gate."""

    path: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def find() -> BrokerBinary:
    """The one that HEARTH_NATS_SERVER names, else the one from our own lock, else the one on PATH."""
    told = os.environ.get("HEARTH_NATS_SERVER")
    if told:
        return check(Path(told))
    own = Path(sys.prefix) / "bin" / "nats-server"
    on_path = shutil.which("nats-server")
    if own.exists():
        return check(own)
    if on_path:
        return check(Path(on_path))
    raise BrokerUnfit("There is no nats-server here.", fix="rm -rf .venv && ./hearth doctor")


def check(path: Path) -> BrokerBinary:
    """The binary with its version, or `BrokerUnfit`."""
    try:
        answer = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise BrokerUnfit(f"{path} does not run: {failure}", fix="unset HEARTH_NATS_SERVER") from failure
    return BrokerBinary(path, gate(answer, path))


def gate(answer: str, path: Path) -> tuple[int, int, int]:
    """The version in what `nats-server --version` printed, where Hearth knows it."""
    match = _VERSION.search(answer)
    if match is None:
        raise BrokerUnfit(f"{path} does not say its version.", fix="unset HEARTH_NATS_SERVER")
    major, minor, patch = (int(part) for part in match.groups())
    if not OLDEST <= (major, minor, patch) < TOO_NEW:
        wanted = f"{'.'.join(map(str, OLDEST))} or newer, below {TOO_NEW[0]}"
        raise BrokerUnfit(f"{path} is version {major}.{minor}.{patch}; Hearth needs {wanted}.", fix="unset HEARTH_NATS_SERVER")
    return major, minor, patch
