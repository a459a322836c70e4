"""Write what is generated from the code, or check it: schemas of the contracts, sums of
the example messages, and the reference pages.

    python tools/documents.py            write; refuses a change that breaks a published contract
    python tools/documents.py --check    say what is stale, change nothing
"""

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from hearth_contracts import documents, schemas
from hearth_kit.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = Path("contracts/schemas")
EXAMPLES = Path("contracts/examples")
SUMS = "SHA256SUMS"
REFERENCE = Path("docs/reference")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def settings_page() -> str:
    """One page of every variable, from each service's `config.py`."""
    common = ServiceSettings.model_fields
    parts = [f"## All services\n\n{_variables(ServiceSettings, set(common))}"]
    for config in sorted(ROOT.glob("services/*/src/*/config.py")):
        module = importlib.import_module(f"{config.parent.name}.config")
        own = {name for name, field in module.Settings.model_fields.items() if not _same(common.get(name), field)}
        text = _variables(module.Settings, own) if own else "None of its own.\n"
        parts.append(f"## {config.parent.name.removeprefix('hearth_').replace('_', '-')}\n\n{text}")
    return documents.page("Settings", "Environment variables, read once when a process starts. A wrong one ends the process "
                          "with the variable's name and what is wrong with it.", "\n".join(parts))  # fmt: skip


def _same(one: FieldInfo | None, other: FieldInfo) -> bool:
    return one is not None and (one.default, one.description) == (other.default, other.description)


def _variables(model: type[ServiceSettings], names: set[str]) -> str:
    rows: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        if name in names:
            variable = field.alias or f"HEARTH_{name.upper()}"
            default = "made at the start" if field.default_factory else "" if field.default is None else str(field.default)
            rows.append((f"`{variable}`", f"`{default}`" if default else "", field.description or ""))
    return documents.table(("variable", "default", "meaning"), rows)


def generate() -> dict[Path, str]:
    """Every generated file, by its path below the root."""
    files = {SCHEMAS / f"{label}.json": _json(schema) for label, schema in schemas.generate().items()}
    files[REFERENCE / "asyncapi.json"] = _json(documents.asyncapi())
    files.update({REFERENCE / name: text for name, text in documents.pages().items()})
    files[REFERENCE / "settings.md"] = settings_page()
    files[EXAMPLES / SUMS] = "".join(f"{digest}  {path}\n" for path, digest in sums().items())
    return files


def broken(root: Path = ROOT) -> list[str]:
    """What today's code would break in the published contracts."""
    now = schemas.generate()
    found: list[str] = []
    for path in sorted((root / SCHEMAS).glob("*.json")):
        if path.stem not in now:
            found.append(f"{path.stem} is gone: it is served until nobody can hold a message of it any more")
            continue
        changes = schemas.breaks(json.loads(path.read_text()), now[path.stem])
        found += [f"{path.stem}: {change}; make a new version beside it" for change in changes]
    return found


def sums(root: Path = ROOT) -> dict[str, str]:
    """The SHA-256 of every example, by its path below the examples."""
    files = sorted((root / EXAMPLES).glob("*/*.json"))
    return {path.relative_to(root / EXAMPLES).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def edited(root: Path = ROOT) -> list[str]:
    """Examples that are not what they were when they were added: they stand for messages that somebody still holds."""
    now = sums(root)
    found: list[str] = []
    for line in (root / EXAMPLES / SUMS).read_text().splitlines():
        digest, path = line.split("  ")
        if now.get(path) != digest:
            found.append(f"example {path} was {'changed' if path in now else 'removed'}: put it back, and add another")
    return found


def stale(root: Path = ROOT) -> list[Path]:
    """Files that are not what would be written now."""
    return [path for path, text in generate().items() if not (root / path).exists() or (root / path).read_text() != text]


def main(arguments: list[str]) -> int:
    problems = broken() + edited()
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    if "--check" in arguments:
        old = stale()
        for path in old:
            print(f"{path} is stale: run python tools/documents.py", file=sys.stderr)
        return 1 if old else 0
    for path, text in generate().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
