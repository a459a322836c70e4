"""What a command prints: named steps with their seconds, and errors in two lines."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from hearth_cli.errors import CommandError

#: How often a step that takes long says that it still works, where the terminal cannot be written over.
STILL_S: Final = 15.0


def out(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """To stderr: progress never mixes with a command's result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def out_json(value: Any) -> None:
    out(json.dumps(value, indent=2, ensure_ascii=False))


class Step:
    """One step of a longer command. Call it with what is being done now."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self._said = self._started
        self._live = sys.stderr.isatty()
        self._detail = ""

    def __call__(self, detail: str = "") -> None:
        now = time.monotonic()
        if self._live:
            sys.stderr.write(f"\r\x1b[2K  … {self._name} {now - self._started:.0f} s  {detail[:80]}")
            sys.stderr.flush()
        elif detail != self._detail or now - self._said >= STILL_S:
            self._said = now
            if detail:
                note(f"  … {self._name}: {detail}")
        self._detail = detail

    def end(self, mark: str) -> None:
        seconds = time.monotonic() - self._started
        clear = "\r\x1b[2K" if self._live else ""
        sys.stderr.write(f"{clear}  {mark} {self._name} ({seconds:.1f} s)\n")
        sys.stderr.flush()


@contextlib.contextmanager
def step(name: str) -> Iterator[Step]:
    """Say what is being done, and afterwards how long it took."""
    one = Step(name)
    one()
    try:
        yield one
    except BaseException:
        one.end("✗")
        raise
    one.end("✓")


def show_error(error: CommandError) -> None:
    note(f"hearth: {error.message}")
    if error.detail:
        note("\n".join(f"  {line}" for line in error.detail.strip().splitlines()))
    if error.fix:
        note(f"  mend it with: {error.fix}")


def plain(text: str) -> str:
    """Text from a function as a terminal may show it: control characters cannot move the cursor or set a title."""
    if not sys.stdout.isatty():
        return text
    return "".join(ch if ch in "\n\t" or ch.isprintable() else f"\\x{ord(ch):02x}" for ch in text)


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (headings, *rows)
    )
