"""The tree keeps the house rules, and each rule bites."""

import subprocess
from pathlib import Path

import pytest
from tests.repo import rules

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files() -> dict[Path, str]:
    """Every text file that git knows, by its path in the tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    found: dict[Path, str] = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            try:
                found[Path(name)] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
    return found


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps(rule: rules.Rule, files: dict[Path, str]) -> None:
    found = [line for path, text in files.items() for line in rule(path, text)]
    assert not found, "\n".join(found)


def test_every_module_is_used(files: dict[Path, str]) -> None:
    found = list(rules.modules_nobody_imports(files))
    assert not found, "\n".join(found)


def test_what_is_large_is_shown(files: dict[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = sorted(line for path, text in files.items() for line in rules.large(path, text))
    with capsys.disabled():
        print(f"\n{len(found)} large files and functions:", *found, sep="\n  ")


WRONG: list[tuple[rules.Rule, str, str]] = [
    (rules.no_package_host, "docs/a.md", "get it from https://pypi" + ".org/simple"),
    (rules.nothing_unfinished, "kit/src/hearth_kit/a.py", "# TO" + "DO later"),
    (rules.no_place_of_ours, "docs/a.md", "see /wo" + "rk/main/x"),
    (rules.names_say_what_is_inside, "kit/src/hearth_kit/utils.py", ""),
    (rules.nothing_is_left_out, "kit/src/hearth_kit/a.py", "def f():\n    raise NotImplementedError"),
    (rules.settings_are_read_in_one_place, "services/gateway/src/hearth_gateway/a.py", "import os\nx = os.environ['A']"),
    (rules.settings_are_read_in_one_place, "services/gateway/src/hearth_gateway/a.py", "import os\nx = os.getenv('A')"),
    (rules.tests_do_not_make_time_pass, "kit/tests/test_a.py", "import time\ntime.sleep(2)"),
    (rules.nothing_is_skipped, "kit/tests/test_a.py", "import pytest\n@pytest.mark.skip\ndef test(): ..."),
    (rules.nothing_is_skipped, "kit/tests/test_a.py", "import pytest\npytest.skip('no time')"),
    (rules.large, "kit/src/hearth_kit/a.py", "x = 1\n" * 301),
    (rules.large, "kit/src/hearth_kit/a.py", "def f():\n" + "    x = 1\n" * 71),
]


@pytest.mark.parametrize(("rule", "path", "text"), WRONG, ids=lambda one: getattr(one, "__name__", ""))
def test_it_bites(rule: rules.Rule, path: str, text: str) -> None:
    assert list(rule(Path(path), text))
    assert not list(rule(Path("kit/src/hearth_kit/fine.py"), '"""Fine."""\n'))


def test_a_module_that_nothing_reaches_is_found() -> None:
    used, dead, user = Path("kit/src/hearth_kit/used.py"), Path("kit/src/hearth_kit/dead.py"), Path("kit/tests/test_used.py")
    found = list(rules.modules_nobody_imports({used: "", dead: "", user: "from hearth_kit import used"}))
    assert found == [f"{dead}: nothing imports hearth_kit.dead"]
