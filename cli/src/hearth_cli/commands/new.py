"""`hearth new`: a first function to start from."""

import re
from pathlib import Path
from typing import Final

from hearth_cli import terminal
from hearth_cli.bundle import SPEC_NAME
from hearth_cli.errors import CommandError

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")

_SPEC: Final = """\
name: @name@
runtime: python
handler: main:handle        # the function `handle` in main.py
memory_mb: 128
timeout_s: 30               # 0: no limit
"""

_CODE: Final = '''\
"""@name@: greets whoever the event names."""


def handle(event, context):
    name = (event or {}).get("name", "world")
    print(f"greeting {name}")  # ./hearth logs @name@
    return {"message": f"Hello, {name}!"}
'''

_EVENT: Final = '{"name": "ada"}\n'


def run(name: str, parent: Path) -> None:
    if not _NAME.fullmatch(name):
        raise CommandError(
            f"{name!r} cannot be a function's name.", fix="use lower-case letters, digits, - and _, starting with a letter"
        )
    folder = parent / name
    if (folder / SPEC_NAME).exists():
        raise CommandError(f"{folder / SPEC_NAME} exists already.", fix=f"./hearth deploy {folder}")
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{folder} is a file.", fix=f"./hearth new {name}-2")
    folder.mkdir(parents=True, exist_ok=True)
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    for file, text in ((SPEC_NAME, _SPEC), ("main.py", _CODE), ("event.json", _EVENT)):
        if (folder / file).exists():
            terminal.note(f"{shown / file} is there already and stays as it is")
            continue
        (folder / file).write_text(text.replace("@name@", name), encoding="utf-8")
        terminal.out(f"wrote {shown / file}")
    terminal.out()
    terminal.out(f"  ./hearth deploy {shown}\n  ./hearth invoke {name} -d @{shown}/event.json")
