"""`hearth logs`: what a call printed, a function's latest calls, or a service of the local platform."""

import re
import sys
import time
from pathlib import Path
from typing import Final

from hearth_cli import terminal
from hearth_cli.client import Gateway
from hearth_cli.errors import CommandError
from hearth_cli.local.data_dir import DataDir
from hearth_cli.local.log_file import tail

_JOB: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}-[0-9a-hjkmnp-tv-z]{26}")
_LINES: Final = 100
_FOLLOW_POLL_S: Final = 0.2


def run(target: str, told: Path | None, *, follow: bool, url: str, key: str) -> None:
    local = DataDir.at(told).logs
    if not url and (local / f"{target}.log").exists():
        _service(local / f"{target}.log", follow=follow)
    elif not target:
        known = ", ".join(sorted(file.stem for file in local.glob("*.log")))
        raise CommandError(
            "Whose logs?",
            detail=f"a job, a function, or one of {known}" if known else "a job or a function",
            fix=f"./hearth logs {'gateway-1' if known else 'FUNCTION'}",
        )
    elif _JOB.fullmatch(target):
        _job(Gateway.open(told, url=url, key=key), target, follow=follow)
    else:
        _function(Gateway.open(told, url=url, key=key), target)


def _job(gateway: Gateway, job: str, *, follow: bool) -> None:
    """What a call printed so far; with `follow`, until it ends."""
    for chunk in gateway.stream(f"/v1/jobs/{job}/logs?follow={int(follow)}"):
        sys.stdout.write(terminal.plain(chunk.decode(errors="replace")))
        sys.stdout.flush()


def _function(gateway: Gateway, name: str) -> None:
    """The latest calls of a function, and what the newest of them printed."""
    answer = gateway.get(f"/v1/jobs?function={name}&limit=10")
    jobs = answer["jobs"] if isinstance(answer, dict) else answer
    if not jobs:
        gateway.get(f"/v1/functions/{name}")  # says so where there is none
        terminal.note(f"{name} has not been called in the time that is kept")
        return
    rows = [tuple(str(job.get(column) or "") for column in ("job", "state", "reason")) for job in jobs]
    terminal.note(terminal.table(("job", "state", "reason"), rows))
    _job(gateway, jobs[0]["job"], follow=False)


def _service(file: Path, *, follow: bool) -> None:
    terminal.out(tail(file, _LINES))
    position = file.stat().st_size
    while follow:
        time.sleep(_FOLLOW_POLL_S)
        size = file.stat().st_size
        if size < position:  # rotated
            position = 0
        if size > position:
            with file.open("rb") as opened:
                opened.seek(position)
                sys.stdout.write(opened.read().decode(errors="replace"))
            sys.stdout.flush()
            position = size
