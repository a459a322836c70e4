"""The house rules, each a function of one file's path and text. What a rule finds is a line that a person can act on."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

Rule = Callable[[Path, str], Iterator[str]]

#: Put together from pieces, so that this file does not break its own rules.
_HOSTS: Final = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
    )
)
_UNFINISHED: Final = re.compile(rf"\b({'|'.join(('TO' + 'DO', 'FIX' + 'ME', 'X' + 'XX'))})\b")
_PLACES: Final = re.compile(rf"(?<![\w.])/({'|'.join(('wo' + 'rk', 'ro' + 'ot'))})/")
#: Names that say nothing about what is inside.
_EMPTY_NAMES: Final = frozenset({"utils.py", "util.py", "helpers.py", "common.py", "misc.py"})
#: A test that waits for something looks again and again, soon. One that sleeps longer says on the same line why: mostly
#: because nothing may happen meanwhile, for which there is nothing to wait.
SLEEP_S_MAX: Final = 0.5
#: Longer than any test may take: work without an end, to be cancelled.
SLEEP_S_ENDLESS: Final = 120
FILE_LINES: Final = 300
FUNCTION_LINES: Final = 70


def no_package_host(path: Path, text: str) -> Iterator[str]:
    """Mirrors and sites without a network work with the tree as it is."""
    for number, line in enumerate(text.splitlines(), 1):
        for host in _HOSTS:
            if host in line:
                yield f"{path}:{number}: names the package host {host}"


def nothing_unfinished(path: Path, text: str) -> Iterator[str]:
    """What is missing is said in the documentation or is an issue, not a note in the code."""
    if path.suffix in {".py", ".sh", ".md", ".toml"} or path.suffix == "":
        for number, line in enumerate(text.splitlines(), 1):
            if found := _UNFINISHED.search(line):
                yield f"{path}:{number}: {found[0]} in the tree"


def no_place_of_ours(path: Path, text: str) -> Iterator[str]:
    """A path of one machine means nothing on another."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _PLACES.search(line):
            yield f"{path}:{number}: {found[0]} is a folder of one machine"


def names_say_what_is_inside(path: Path, text: str) -> Iterator[str]:
    if path.name in _EMPTY_NAMES:
        yield f"{path}: name it after the noun inside"


def nothing_is_left_out(path: Path, text: str) -> Iterator[str]:
    """A body that only says that it is not there is a promise without a date. A base class may ask for a method, in words."""
    if path.suffix != ".py" or "tests" in path.parts:
        return
    tree = ast.parse(text)
    asked = {
        child
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for method in owner.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(method)
        for child in ast.walk(method)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node not in asked and "NotImplementedError" in ast.dump(node):
            yield f"{path}:{node.lineno}: raises NotImplementedError"


def settings_are_read_in_one_place(path: Path, text: str) -> Iterator[str]:
    """A service reads the environment in its config.py and nowhere else; where the engine listens is the engine's own word."""
    if path.parts[0] != "services" or "src" not in path.parts or path.name == "config.py":
        return
    for node in _nodes(path, text):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} and ast.unparse(node.value) == "os":
            if "DOCKER_HOST" in text.splitlines()[node.lineno - 1]:
                continue
            yield f"{path}:{node.lineno}: reads the environment outside config.py"


def tests_do_not_make_time_pass(path: Path, text: str) -> Iterator[str]:
    if "tests" not in path.parts:
        return
    lines = text.splitlines()
    for node in _nodes(path, text):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep"} and node.args:
            length = node.args[0]
            seconds = length.value if isinstance(length, ast.Constant) else 0
            if isinstance(seconds, int | float) and SLEEP_S_MAX < seconds < SLEEP_S_ENDLESS:
                if "  # " in lines[node.lineno - 1]:
                    continue
                yield f"{path}:{node.lineno}: sleeps {seconds} s; wait for what it is about instead"


def nothing_is_skipped(path: Path, text: str) -> Iterator[str]:
    """A test that does not run says nothing. One may ask for root, as a whole machine's engine needs it; CI has it."""
    if "tests" not in path.parts or path.suffix != ".py":
        return
    for node in _nodes(path, text):
        if not isinstance(node, ast.Attribute | ast.Call):
            continue
        said = ast.unparse(node)
        if said.startswith(("pytest.mark.skip", "pytest.mark.xfail", "pytest.importorskip", "pytest.xfail", "unittest.skip")) or (
            isinstance(node, ast.Call) and said.startswith("pytest.skip(") and "root" not in said
        ):
            yield f"{path}:{node.lineno}: a test that is not run"


RULES: Final[tuple[Rule, ...]] = (
    no_package_host,
    nothing_unfinished,
    no_place_of_ours,
    names_say_what_is_inside,
    nothing_is_left_out,
    settings_are_read_in_one_place,
    tests_do_not_make_time_pass,
    nothing_is_skipped,
)


def modules_nobody_imports(files: dict[Path, str]) -> Iterator[str]:
    """Code that nothing reaches. Entry points are reached by name: `-m module`, a script, pytest."""
    imported: set[str] = set()
    spoken = "\n".join(text for path, text in files.items() if path.suffix != ".lock")
    for path, text in files.items():
        for node in _nodes(path, text):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module)
                imported.update(f"{node.module}.{alias.name}" for alias in node.names)
    for path in files:
        if path.suffix == ".py" and "src" in path.parts and path.name not in {"__init__.py", "__main__.py"}:
            module = ".".join(path.parts[path.parts.index("src") + 1 :]).removesuffix(".py")
            if module not in imported and f'"{module}"' not in spoken:
                yield f"{path}: nothing imports {module}"


def large(path: Path, text: str) -> Iterator[str]:
    """A signal, never a verdict: a growing list prompts a look."""
    if path.suffix == ".py" and "tests" not in path.parts:
        if len(text.splitlines()) > FILE_LINES:
            yield f"{path}: {len(text.splitlines())} lines"
        for node in _nodes(path, text):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    yield f"{path}:{node.lineno}: {node.name} has {lines} lines"


def _nodes(path: Path, text: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(text)) if path.suffix == ".py" else iter(())
