"""The README's first function, word for word: what a newcomer copies works, and answers what they would expect."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hearth_cli.local import ports
from hearth_cli.local.data_dir import DataDir

pytestmark = [pytest.mark.platform, pytest.mark.broker, pytest.mark.docker]

ROOT = Path(__file__).resolve().parents[3]


def blocks() -> list[str]:
    """The shell blocks of the section, in order: start and call, look up, the command line."""
    section = (ROOT / "README.md").read_text().split("## A first function in 60 seconds")[1].split("\n## ")[0]
    return re.findall(r"```\n(.*?)```", section, re.DOTALL)


class Newcomer:
    """Runs the README's lines in one shell each, as they stand, but for the place and the port of this test's platform."""

    def __init__(self, folder: Path) -> None:
        self.data = DataDir(folder / "data")
        self._folder = folder
        self._port = ports.choose(("http",), {})["http"]

    def run(self, text: str, *, job: str = "") -> str:
        text = text.replace("./hearth up --detach", f"./hearth up --detach --no-install --port {self._port}")
        text = text.replace(".hearth/admin-key", str(self.data.admin_key)).replace("localhost:8080", f"localhost:{self._port}")
        text = re.sub(r"\bJOB\b", job, text).replace("./hearth ", f"{ROOT}/hearth ")
        environment = {**os.environ, "HEARTH_DATA_DIR": str(self.data.root)}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    made = Newcomer(tmp_path)
    yield made
    made.run("./hearth down")


def test_every_line_does_what_it_says(newcomer: Newcomer) -> None:
    first, lookups, commands = blocks()
    said = newcomer.run(first)
    assert "HTTP/1.1 200 OK" in said
    assert said.endswith('{"hello":"ada"}')
    job = re.search(r"x-hearth-job: (\S+)", said)
    assert job
    key = f"KEY=$(cat {newcomer.data.admin_key})\n"
    state, trace, accepted, streamed = (newcomer.run(key + line, job=job[1]) for line in lookups.strip().splitlines())
    assert json.loads(state)["result"] == {"hello": "ada"}
    assert json.loads(trace)["spans"]
    assert json.loads(accepted)["state"] == "PENDING"
    assert '"result":{"hello":"bob"}' in streamed
    told = newcomer.run(commands.replace("./hearth down", ""), job=job[1])
    assert '{"message":"Hello, ada!"}' in told
    assert "executor-1" in told
