"""`hearth test`: Hearth's own tests, all of them, with pytest's own summary at the end."""

import os
import subprocess
import sys

from hearth_cli import terminal
from hearth_cli.commands import doctor
from hearth_cli.errors import CommandError
from hearth_cli.local.data_dir import workspace_root


def run(*, everything: bool, install: bool, arguments: list[str]) -> int:
    root = workspace_root()
    if root is None:
        raise CommandError("The tests are in a checkout of Hearth; this is an installed package.")
    for line in doctor.make_ready(install=install):
        terminal.note(f"  off: {line}")
    markers = [] if everything else ["-m", "not long"]
    return subprocess.call(
        [sys.executable, "-m", "pytest", *markers, *arguments], cwd=root, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
