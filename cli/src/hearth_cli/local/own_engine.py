"""An engine that `up` started by hand, because no init system runs here: `down` ends it, unless somebody else uses it now."""

import contextlib
from collections.abc import Iterator

from hearth_cli.local import engine
from hearth_cli.local.data_dir import DataDir, write_private
from hearth_cli.local.engine_api import EngineApi


@contextlib.contextmanager
def noted(data: DataDir) -> Iterator[None]:
    """Note an engine that is started meanwhile as this platform's own."""
    before = _pid()
    yield
    after = _pid()
    if after and after != before:
        write_private(data.engine, after)


def end(data: DataDir) -> bool:
    """End this platform's own engine where no container is left in it; True when it was ended."""
    try:
        mine = data.engine.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    if mine != _pid() or EngineApi().containers([]):
        return False
    data.engine.unlink()
    return engine.stop_started_engine()


def _pid() -> str:
    try:
        return engine.PID_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
