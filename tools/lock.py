"""Make requirements.lock from what the members and the dev group declare: `make lock`.

One lock for all: universal (every platform and Python we support), hashed, and free of any address, so that it works
as it is behind a mirror or where there is no network. What is locked already stays as it is unless `--upgrade` says so.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The oldest Python that Hearth runs on.
PYTHON = "3.11"


def declared() -> list[str]:
    """Every requirement of every member and of the dev group, but for Hearth's own packages."""
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = set(workspace["dependency-groups"]["dev"])
    for pattern in workspace["tool"]["uv"]["workspace"]["members"]:
        for folder in ROOT.glob(pattern):
            if (folder / "pyproject.toml").exists():
                found.update(tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"])
    return sorted(requirement for requirement in found if not requirement.startswith("hearth-"))


def main(arguments: list[str]) -> int:
    uv = Path(sys.prefix) / "bin" / "uv"
    with tempfile.NamedTemporaryFile("w", suffix=".in") as wanted:
        wanted.write("\n".join(declared()))
        wanted.flush()
        command = [str(uv), "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--python-version", PYTHON]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        return subprocess.call([*command, *arguments, wanted.name, "--output-file", str(ROOT / "requirements.lock")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
