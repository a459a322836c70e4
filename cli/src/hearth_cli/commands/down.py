"""`hearth down`: no process and no container is left; the data stays unless told otherwise."""

import shutil
from pathlib import Path

from hearth_cli import terminal
from hearth_cli.errors import CommandError
from hearth_cli.local import own_engine, platform
from hearth_cli.local.data_dir import DataDir


def run(told: Path | None, *, purge: bool) -> None:
    data = DataDir.at(told)
    if not data.exists:
        terminal.note(f"there is no platform in {data.root}")
        return
    with terminal.step("stopping"):
        killed = platform.stop(data)
        removed = platform.remove_containers(data)
        why = own_engine.end(data)
    if killed:
        terminal.note(f"  {killed} processes had to be killed")
    if removed:
        terminal.note(f"  {removed} containers were left and are removed")
    if why:
        terminal.note(f"  the container engine that `up` started goes on: {why}")
    if purge:
        if not platform.is_data_dir(data.root):
            raise CommandError(f"{data.root} is not a data directory of Hearth.")
        shutil.rmtree(data.root)
        terminal.note(f"  deleted {data.root}")
