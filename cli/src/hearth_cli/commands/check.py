"""`hearth check`: everything that needs neither a broker nor an engine, with one summary."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hearth_cli import terminal
from hearth_cli.errors import CommandError
from hearth_cli.local.data_dir import workspace_root


def run() -> int:
    root = workspace_root()
    if root is None:
        raise CommandError("The checks are for a checkout of Hearth; this is an installed package.")
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(_run, commands(root)))
    failed = [(name, said) for name, code, said, _ in results if code]
    for name, said in failed:
        terminal.out(f"── {name}\n{said.rstrip()}\n")
    rows = [(name, "failed" if code else "ok", f"{seconds:.1f} s") for name, code, _, seconds in results]
    terminal.out(terminal.table(("check", "result", "took"), rows))
    terminal.out(
        f"{len(failed)} of {len(results)} failed, {time.monotonic() - began:.0f} s"
        if failed
        else f"all {len(results)} passed, {time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


def commands(root: Path) -> list[tuple[str, Path, list[str]]]:
    """(name, folder, command) of every check. Each is one that a person could run by hand."""
    bin_folder = Path(sys.executable).parent
    members = [folder for folder in (root / "contracts", root / "kit", root / "cli", *sorted((root / "services").iterdir()))
               if (folder / "pyproject.toml").exists()]  # fmt: skip
    found = [
        ("types (basedpyright)", root, [str(bin_folder / "basedpyright"), "--warnings"]),
        ("style (ruff)", root, [str(bin_folder / "ruff"), "check"]),
        ("layout (ruff format)", root, [str(bin_folder / "ruff"), "format", "--check"]),
        ("imports (import-linter)", root, [str(bin_folder / "lint-imports"), "--config", "pyproject.toml", "--no-logo"]),
    ]
    for member in members:
        command = [str(bin_folder / "deptry"), "--no-ansi", "src"]
        found.append((f"dependencies of {member.relative_to(root)} (deptry)", member, command))
    if (root / "tests" / "repo").exists():
        found.append(
            ("house rules (tests/repo)", root, [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "tests/repo"])
        )
    return found


def _run(check: tuple[str, Path, list[str]]) -> tuple[str, int, str, float]:
    name, folder, command = check
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return name, done.returncode, done.stdout, time.monotonic() - began
