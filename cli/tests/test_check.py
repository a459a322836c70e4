"""Each check bites: a small workspace under Hearth's own settings passes, and fails with one thing wrong in it."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from hearth_cli.commands import check

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "scheduler", "executor", "ai_proxy", "persister")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Every package that the settings name, each with next to nothing in it."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "nothing.py").write_text('"""Nothing yet."""\n')
    folders = {"hearth_contracts": "contracts", "hearth_kit": "kit", "hearth_cli": "cli"}
    folders |= {f"hearth_{name}": f"services/{name.replace('_', '-')}" for name in SERVICES}
    for package, folder in folders.items():
        source = tmp_path / folder / "src" / package
        (source / "domain").mkdir(parents=True)
        for file in (source / "__init__.py", source / "domain" / "__init__.py", source / "app.py"):
            file.write_text('"""Nothing yet."""\n')
        (tmp_path / folder / "pyproject.toml").write_text(
            f'[project]\nname = "{package.replace("_", "-")}"\nversion = "1"\ndependencies = []\n'
        )
    return tmp_path


def run(workspace: Path, name: str) -> "subprocess.CompletedProcess[str]":
    """One check as `hearth check` runs it, on this workspace."""
    _, folder, command = next(one for one in check.commands(workspace) if one[0].startswith(name))
    paths = [str(path) for path in (*workspace.glob("*/src"), *workspace.glob("services/*/src"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # The editable members of this environment would win over the workspace's packages otherwise.
    if "lint-imports" in command[0]:
        script = (
            f"import sys; sys.path[:0] = {paths!r}; from importlinter.cli import lint_imports_command; lint_imports_command()"
        )
        command = [sys.executable, "-c", script, *command[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def write(workspace: Path, file: str, text: str) -> None:
    (workspace / file).write_text(f'"""Wrong."""\n\n{text}\n')


GATEWAY = "services/gateway/src/hearth_gateway"
VIOLATIONS: list[tuple[str, str, str]] = [
    ("imports", f"{GATEWAY}/app.py", "import hearth_scheduler.app"),
    ("imports", f"{GATEWAY}/app.py", "import nats"),
    ("imports", f"{GATEWAY}/domain/__init__.py", "import asyncio"),
    ("imports", f"{GATEWAY}/domain/__init__.py", "import hearth_kit"),
    ("imports", "contracts/src/hearth_contracts/app.py", "import hearth_kit"),
    ("imports", "kit/src/hearth_kit/app.py", "import hearth_gateway.app"),
    ("imports", f"{GATEWAY}/domain/__init__.py", "import hearth_gateway.app"),
    ("style", f"{GATEWAY}/app.py", "import time\n\nNOW = time.time()"),
    ("types", f"{GATEWAY}/app.py", "def double(number):\n    return number * 2"),
    ("types", f"{GATEWAY}/app.py", 'NUMBER: int = "one"'),
    ("style", f"{GATEWAY}/app.py", "def add(item: int, to: list[int] = []) -> None:\n    to.append(item)"),
    ("style", f"{GATEWAY}/app.py", "import subprocess\n\nsubprocess.run('ls ' + input(), shell=True)"),
    ("layout", f"{GATEWAY}/app.py", "NUMBERS = [1,2]"),
    ("dependencies of services/gateway", f"{GATEWAY}/app.py", "import yaml"),
]


@pytest.mark.parametrize(("name", "file", "text"), VIOLATIONS)
def test_it_bites(workspace: Path, name: str, file: str, text: str) -> None:
    clean = run(workspace, name)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    write(workspace, file, text)
    wrong = run(workspace, name)
    assert wrong.returncode != 0, wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_every_member_is_checked() -> None:
    members = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    folders = {
        str(path.relative_to(ROOT)) for pattern in members for path in ROOT.glob(pattern) if (path / "pyproject.toml").exists()
    }
    checked = {one[0].split()[2] for one in check.commands(ROOT) if one[0].startswith("dependencies")}
    assert checked == folders


def test_the_summary_counts_what_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def two(root: Path) -> list[tuple[str, Path, list[str]]]:
        return [("good", root, ["true"]), ("bad", root, ["sh", "-c", "echo what went wrong; exit 3"])]

    found: Callable[[Path], list[tuple[str, Path, list[str]]]] = two
    monkeypatch.setattr(check, "commands", found)
    assert check.run() == 1
    said = capsys.readouterr().out
    assert "what went wrong" in said
    assert "1 of 2 failed" in said
