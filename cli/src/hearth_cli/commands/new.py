"""`hearth new`: a first function to start from."""

import re
from pathlib import Path
from typing import Final

from hearth_cli import terminal
from hearth_cli.errors import CommandError

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")

_SPEC: Final = """\
name: {name}
runtime: python
handler: main:handle        # the function `handle` in main.py
memory_mb: 128
timeout_s: 30               # 0: no limit
"""

_CODE: Final = '''\
"""{name}: greets whoever the event names."""


def handle(event, context):
    name = (event or {{}}).get("name", "world")
    print(f"greeting {{name}}")  # ./hearth logs {name}
    return {{"message": f"Hello, {{name}}!"}}
'''

_EVENT: Final = '{"name": "ada"}\n'


def run(name: str, parent: Path) -> None:
    if not _NAME.fullmatch(name):
        raise CommandError(
            f"{name!r} cannot be a function's name.", fix="use lower-case letters, digits, - and _, starting with a letter"
        )
    folder = parent / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise CommandError(f"{folder} exists already.", fix=f"./hearth deploy {folder}") from None
    for file, text in (("function.yaml", _SPEC), ("main.py", _CODE)):
        (folder / file).write_text(text.format(name=name), encoding="utf-8")
    (folder / "event.json").write_text(_EVENT, encoding="utf-8")
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    terminal.out(f"wrote {shown}/function.yaml, main.py and event.json\n")
    terminal.out(f"  ./hearth deploy {shown}\n  ./hearth invoke {name} -d @{shown}/event.json")
