"""The tools' lists cover what is there. A service that is missing from a list is not checked, and nothing says so."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/src/*/__init__.py"))
PACKAGES = sorted({*SERVICES, "hearth_contracts", "hearth_kit", "hearth_cli"})
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
#: In every service the same files with the same meaning.
FILES = ("__main__.py", "app.py", "config.py", "errors.py", "metrics.py", "domain/__init__.py", "py.typed")


def contract(start: str) -> dict:
    return next(one for one in LINTER["contracts"] if one["name"].startswith(start))


def test_every_package_is_analysed():
    assert sorted(LINTER["root_packages"]) == PACKAGES


def test_every_service_stands_in_every_list():
    assert sorted(contract("Services never import")["modules"]) == sorted([*SERVICES, "hearth_cli"])
    layers = contract("Everything rests on kit")["layers"]
    assert sorted(layers[0].split(" | ")) == sorted([*SERVICES, "hearth_cli"])
    assert layers[1:] == ["hearth_kit", "hearth_contracts"]
    assert sorted(contract("Only the kit")["source_modules"]) == sorted(set(PACKAGES) - {"hearth_kit"})
    assert sorted(contract("Decisions are pure")["source_modules"]) == [f"{service}.domain" for service in SERVICES]
    assert sorted(contract("In each service")["containers"]) == SERVICES


def test_names_are_literal():
    """A wildcard that matches nothing passes."""
    for one in LINTER["contracts"]:
        for key in ("modules", "source_modules", "forbidden_modules", "containers", "layers"):
            assert not [name for name in one.get(key, ()) if "*" in name], one["name"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_files_that_every_service_has(service):
    folder = next(ROOT.glob(f"services/*/src/{service}"))
    assert [name for name in FILES if not (folder / name).exists()] == []
    assert len((folder / "__main__.py").read_text().splitlines()) <= 15


def test_types_are_checked_everywhere():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
    assert settings["typeCheckingMode"] == "strict"
    included = {path for pattern in settings["include"] for path in ROOT.glob(pattern)}
    for package in PACKAGES:
        [source] = [path.parent for path in (*ROOT.glob(f"*/src/{package}"), *ROOT.glob(f"services/*/src/{package}"))]
        assert included & {source, *source.parents}, package


def test_nothing_is_switched_off_without_its_reason():
    """One reason a line, beside what it switches off or right above it."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    ignoring = False
    for number, line in enumerate(lines):
        ignoring = line.startswith("ignore = [") or (ignoring and not line.startswith("]"))
        in_lists = ignoring and line.startswith("    ")
        if in_lists or line.startswith("report") or (line.startswith('"') and '" = ["' in line):
            block = lines[max(0, number - 2) : number]
            assert "#" in line or any(before.startswith("#") for before in block), line


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def unused(definition: Path, names: list[str], users: list[Path]) -> list[str]:
    used = set().union(*(names_in(path) for path in users))
    return [f"{definition}: {name} is used by nothing" for name in names if name not in used]


def sources(package: str) -> list[Path]:
    return [*ROOT.glob(f"*/src/{package}/**/*.py"), *ROOT.glob(f"services/*/src/{package}/**/*.py")]


def counted(path: Path) -> list[str]:
    """The metrics that a `metrics.py` defines."""
    found = []
    for node in ast.parse(path.read_text()).body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and not target.id.startswith("_"):
            found.append(target.id)
    return found


def settings_of(path: Path) -> list[str]:
    """The settings that a `config.py` defines."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return [
        node.target.id
        for one in classes
        for node in one.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


@pytest.mark.parametrize("package", [*SERVICES, "hearth_kit"])
def test_every_metric_is_counted_somewhere(package):
    files = sources(package)
    found = [line for path in files if path.name == "metrics.py" for line in unused(path, counted(path), files)]
    assert found == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_is_read_somewhere(service):
    files = sources(service)
    [config] = [path for path in files if path.name == "config.py"]
    assert unused(config, settings_of(config), files) == []


def test_the_two_rules_above_bite(tmp_path):
    config, metrics, user = tmp_path / "config.py", tmp_path / "metrics.py", tmp_path / "app.py"
    config.write_text("class Settings:\n    used: int = 1\n    dead: int = 2\n")
    metrics.write_text("from typing import Final\nUSED: Final = 1\nDEAD: Final = 2\n_PART = 3\n")
    user.write_text("import metrics\nmetrics.USED\nsettings.used\n")
    assert unused(config, settings_of(config), [config, metrics, user]) == [f"{config}: dead is used by nothing"]
    assert unused(metrics, counted(metrics), [config, metrics, user]) == [f"{metrics}: DEAD is used by nothing"]
