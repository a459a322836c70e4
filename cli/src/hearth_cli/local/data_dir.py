"""Where one platform keeps everything it has: its data directory, file by file."""

import contextlib
import fcntl
import json
import os
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: The name of the data directory where nothing else is said.
DEFAULT_NAME: Final = ".hearth"


def workspace_root() -> Path | None:
    """The checkout this code runs from, or None where it is installed as a plain package."""
    root = Path(__file__).resolve().parents[4]
    return root if (root / "requirements.lock").exists() and (root / "services").is_dir() else None


def default() -> Path:
    """`HEARTH_DATA_DIR`, else `.hearth` in the checkout, else `.hearth` in the current folder."""
    told = os.environ.get("HEARTH_DATA_DIR")
    return Path(told) if told else (workspace_root() or Path.cwd()) / DEFAULT_NAME


@dataclass(frozen=True, slots=True)
class DataDir:
    """The files of one platform. Two platforms have two of these and share nothing."""

    root: Path

    @classmethod
    def at(cls, told: Path | None) -> "DataDir":
        return cls((told or default()).expanduser().absolute())

    @property
    def option(self) -> str:
        """What a command needs beside it to mean this platform: nothing where it is the default one."""
        return "" if self == DataDir.at(None) else f" --data {shlex.quote(str(self.root))}"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def admin_key(self) -> Path:
        return self.root / "admin-key"

    @property
    def broker_config(self) -> Path:
        return self.state / "broker"

    @property
    def credentials(self) -> Path:
        return self.state / "credentials"

    @property
    def streams(self) -> Path:
        """The broker's own files: work and records not yet stored elsewhere."""
        return self.root / "broker"

    @property
    def store(self) -> Path:
        """The default store of records, results and code."""
        return self.root / "store"

    @property
    def plan(self) -> Path:
        return self.state / "plan.json"

    @property
    def processes(self) -> Path:
        """What the supervisor runs now."""
        return self.state / "processes.json"

    @property
    def ports(self) -> Path:
        return self.state / "ports.json"

    @property
    def made_streams(self) -> Path:
        """The streams that were made in this broker, with their settings."""
        return self.state / "streams.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.state / "lock"

    @property
    def exists(self) -> bool:
        return (self.state / "platform.json").exists()

    def make(self) -> None:
        """Make the folders, readable by the owner alone, and the platform's identity at the first time."""
        for folder in (self.root, self.state, self.logs, self.broker_config, self.credentials, self.streams, self.store):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.exists:
            write_private(self.state / "platform.json", json.dumps({"platform": secrets.token_hex(4)}))
        if not self.admin_key.exists():
            write_private(self.admin_key, f"hk_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}\n")

    def platform(self) -> str:
        """The id that tells this platform's processes and containers from any other's."""
        return str(read_json(self.state / "platform.json")["platform"])


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, mode 0600: a reader sees the old text or the new, never half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def read_json(path: Path) -> Any:
    """A JSON file, or {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file: one process at a time changes what it guards."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock: it cannot outlive its holder, so it is never stale."""
    try:
        with path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
