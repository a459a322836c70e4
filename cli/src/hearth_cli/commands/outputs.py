"""`hearth outputs`: the files a job wrote, or one of them on stdout."""

import shlex
import sys
from pathlib import Path
from urllib.parse import quote

from hearth_cli import terminal
from hearth_cli.client import Gateway
from hearth_cli.errors import CommandError


def run(job: str, name: str, told: Path | None, *, url: str, key: str, as_json: bool) -> None:
    gateway = Gateway.open(told, url=url, key=key)
    path = f"/v1/jobs/{quote(job, safe='')}/outputs"
    if name:
        _download(gateway, path, job, name)
        return
    files = gateway.get(path)["outputs"]
    if as_json:
        terminal.out_json(files)
    elif files:
        rows = [(terminal.plain(file["name"]), str(file["size"]), file["sha256"]) for file in files]
        terminal.out(terminal.table(("name", "bytes", "sha256"), rows))
    else:
        terminal.note(f"{job} has no output files")


def _download(gateway: Gateway, path: str, job: str, name: str) -> None:
    if sys.stdout.isatty():
        to = shlex.quote(name)
        raise CommandError("This would print a file to the terminal.", fix=f"./hearth outputs {job} {to} > {to}")
    for piece in gateway.download(f"{path}/{quote(name, safe='')}"):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
