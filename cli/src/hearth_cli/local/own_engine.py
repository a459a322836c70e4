"""An engine that `up` started by hand, because no init system runs here: it ends with the last platform that uses it.

One that somebody else started (by an init system, by `doctor --fix`, by hand) is never ended.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hearth_cli.local import engine, proc
from hearth_cli.local.data_dir import DataDir, is_locked
from hearth_cli.local.engine_api import EngineApi

#: Beside the engine's pid file: the pid of the engine that an `up` started, and the platforms that use the engine.
USERS_FILE: Final = engine.PID_FILE.with_suffix(".users")


@dataclass(slots=True)
class _Users:
    engine: str
    platforms: dict[str, tuple[int, str]]
    """By data directory, the process that started it (pid and mark): it counts before its supervisor holds the lock."""


@contextlib.contextmanager
def used(data: DataDir) -> Iterator[None]:
    """Count a platform among the engine's users before it looks for one; an engine that is started meanwhile is noted."""
    before = _pid()
    with _changed() as users:
        users.platforms[str(data.root)] = (os.getpid(), proc.start_mark(os.getpid()))
    yield
    after = _pid()
    if after and after != before:
        with _changed() as users:
            users.engine = after


def end(data: DataDir) -> str:
    """Count a platform no more, and end the engine where an `up` started it and nobody uses it now.

    Answers with why an engine that an `up` started goes on; "" where it ended, or is not ours to end.
    """
    with _changed() as users:
        users.platforms.pop(str(data.root), None)
        if not users.engine or users.engine != _pid():
            return ""
        users.platforms = {root: by for root, by in users.platforms.items() if _lives(Path(root), *by)}
        if users.platforms:
            return f"{', '.join(sorted(users.platforms))} uses it"
        if engine.inspect_engine().ready and (others := len(EngineApi().containers([]))):
            return f"{others} containers of others are in it"
        engine.stop_started_engine()
        users.engine = ""
        return ""


def _lives(root: Path, pid: int, mark: str) -> bool:
    return is_locked(DataDir(root).lock) or proc.is_same(pid, mark)


@contextlib.contextmanager
def _changed() -> Iterator[_Users]:
    """Read, change, write: one at a time. Whoever may not write here (not root) starts and ends no engine either."""
    try:
        file = open(os.open(USERS_FILE, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")  # noqa: SIM115
    except OSError:
        yield _Users("", {})
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            known: dict[str, Any] = json.load(file)
        except ValueError:  # new, or cut off by a power cut: the containers in it still keep an engine
            known = {}
        users = _Users(known.get("engine", ""), {root: (by[0], by[1]) for root, by in known.get("platforms", {}).items()})
        try:
            yield users
        finally:
            file.seek(0)
            file.truncate()
            json.dump({"engine": users.engine, "platforms": users.platforms}, file)


def _pid() -> str:
    try:
        return engine.PID_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
