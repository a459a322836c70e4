"""`hearth invoke`: call a function. The result goes to stdout, everything else to stderr."""

import json
import sys
from pathlib import Path

from hearth_cli import terminal
from hearth_cli.client import Gateway, refusal
from hearth_cli.commands import bodies


def run(name: str, told: Path | None, *, body: str, asynchronous: bool, url: str, key: str) -> int:
    content, kind = bodies.read(body)
    headers = {"content-type": kind, **({"prefer": "respond-async"} if asynchronous else {})}
    gateway = Gateway.open(told, url=url, key=key)
    answer = gateway.ask("POST", f"/v1/functions/{name}/invoke", body=content, headers=headers, refuse=False)
    job = answer.headers.get("x-hearth-job", "")
    if answer.status >= 400:
        terminal.show_error(refusal(answer))
        if job:
            terminal.note(f"  job {job}   ./hearth logs {job}")
        return 1
    if answer.status in {202, 303}:
        terminal.out(job or str(answer.json().get("job", "")))
        terminal.note(f"  ./hearth logs {job}   GET {answer.headers.get('location', '')}")
        return 0
    _print(answer.body, answer.headers.get("content-type", ""))
    terminal.note(f"  job {job}   {answer.headers.get('x-hearth-start', '')}   ./hearth trace {job}")
    return 0


def _print(body: bytes, kind: str) -> None:
    """JSON laid out for a person; anything else as it is, made harmless where a terminal would act on it."""
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(body + (b"" if body.endswith(b"\n") else b"\n"))
        sys.stdout.buffer.flush()
    elif kind.startswith("application/json"):
        terminal.out(json.dumps(json.loads(body or b"null"), indent=2, ensure_ascii=False))
    else:
        terminal.out(terminal.plain(body.decode(errors="replace")))
