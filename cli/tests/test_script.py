"""./hearth itself: what it says where something is missing, and what it costs where nothing is."""

import ast
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("hearth_script", str(ROOT / "hearth"))
    spec = importlib.util.spec_from_loader("hearth_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


@pytest.fixture
def script() -> ModuleType:
    return load()


def test_an_old_python_is_told_the_one_command(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(script.sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as ended:
        script.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "3.11 or newer; this is 3.9" in said
    assert "apt-get install -y python3.11 python3.11-venv" in said


def test_a_newer_python_on_the_path_takes_over(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "python3.12").write_text("#!/bin/sh\n")
    (tmp_path / "python3.12").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(script.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(script.sys, "argv", ["hearth", "up"])
    ran: list[list[str]] = []

    def execv(path: str, arguments: list[str]) -> None:
        ran.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(script.os, "execv", execv)
    with pytest.raises(SystemExit):
        script.main()
    assert ran == [[str(tmp_path / "python3.12"), str(ROOT / "hearth"), "up"]]


def test_a_python_without_venv_is_told_the_one_command(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    monkeypatch.setattr(script, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(script, "PYTHON", str(tmp_path / ".venv" / "bin" / "python"))
    with pytest.raises(SystemExit):
        script.make_venv()
    said = capsys.readouterr().err
    assert "no venv module" in said
    assert "-venv" in said or "install" in said


def test_it_parses_on_any_python_3() -> None:
    """Or it could not say which one it needs."""
    ast.parse((ROOT / "hearth").read_text(), feature_version=(3, 4))


def test_pips_settings_are_handed_to_uv(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that pip is told about is where uv looks, too; what uv was told itself stands."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.internal/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "mirror.internal")
    for name in ("UV_DEFAULT_INDEX", "UV_FIND_LINKS", "UV_INSECURE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(script, "PYTHON", sys.executable)
    told = script.uv_environment()
    assert told["UV_DEFAULT_INDEX"] == "https://mirror.internal/simple"
    assert told["UV_FIND_LINKS"] == "/a,/b"
    assert told["UV_INSECURE_HOST"] == "mirror.internal"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://other.internal/simple")
    assert script.uv_environment()["UV_DEFAULT_INDEX"] == "https://other.internal/simple"


def test_a_user_without_a_home_installs_without_a_cache(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "PYTHON", sys.executable)
    for name in ("UV_CACHE_DIR", "XDG_CACHE_HOME", "UV_NO_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "made" / "later"))
    assert "UV_NO_CACHE" not in script.uv_environment()
    monkeypatch.setattr(script.os, "access", lambda path, mode: False)  # root may write everywhere
    assert script.uv_environment()["UV_NO_CACHE"] == "1"
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    assert "UV_NO_CACHE" not in script.uv_environment()


def test_pip_finds_what_it_builds_with(script: ModuleType) -> None:
    """uv-build lies in .venv, and pip looks for it on PATH."""
    assert script.with_venv({"PATH": "/usr/bin"})["PATH"] == f"{ROOT}/.venv/bin:/usr/bin"


def test_one_package_is_taken_out_of_the_lock(script: ModuleType) -> None:
    block = script.locked("uv")
    lines = block.splitlines()
    assert lines[0].startswith("uv==")
    assert len(lines) > 2
    assert all("--hash=sha256:" in line for line in lines[1:])


def test_what_is_installed_depends_on_lock_members_and_place(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = script.digest()
    assert script.digest() == before
    assert {Path(folder).name for folder in script.members()} >= {"contracts", "kit", "cli", "gateway", "executor"}
    monkeypatch.setattr(script, "ROOT", "/elsewhere")
    monkeypatch.setattr(script, "members", list)
    assert script.digest() != before


def test_it_adds_little_where_nothing_changed(tmp_path: Path) -> None:
    """Everything before the command's own start: the interpreter, the stamp, the hand-over."""
    stand_in = tmp_path / "app"
    stand_in.mkdir()
    for name in ("hearth", "requirements.lock"):
        (stand_in / name).write_bytes((ROOT / name).read_bytes())
    (stand_in / "hearth").chmod(0o755)
    (stand_in / "services").mkdir()
    (stand_in / ".venv" / "bin").mkdir(parents=True)
    python = stand_in / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    stamp = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({str(stand_in / 'hearth')!r})['digest'](), end='')"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (stand_in / ".venv" / "hearth-installed").write_text(stamp)
    best_s = 9.0
    for _ in range(8):
        began = time.perf_counter()
        subprocess.run([sys.executable, str(stand_in / "hearth"), "status"], check=True, env={**os.environ, "PYTHONPATH": ""})
        best_s = min(best_s, time.perf_counter() - began)
    assert best_s < 0.1
