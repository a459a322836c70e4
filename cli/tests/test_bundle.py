"""Packing a function's folder."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from hearth_cli import bundle
from hearth_cli.commands import new
from hearth_cli.errors import CommandError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new.run("thumbs", tmp_path)
    return tmp_path / "thumbs"


def names(packed: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return archive.getnames()


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    first = bundle.pack(folder)
    os.utime(folder / "main.py", (1, 1))
    assert bundle.pack(folder) == first
    (folder / "main.py").write_text("changed")
    assert bundle.pack(folder) != first


def test_tools_own_files_stay_out(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "main.pyc").write_text("x")
    (folder / ".git").mkdir()
    (folder / "lib").mkdir()
    (folder / "lib" / "a.py").write_text("x")
    (folder / "b.pyc").write_text("x")
    assert names(bundle.pack(folder)) == ["event.json", "lib/a.py", "main.py"]


def test_a_link_is_refused_by_name(folder: Path) -> None:
    (folder / "link.py").symlink_to(folder / "main.py")
    with pytest.raises(CommandError, match=r"link\.py"):
        bundle.pack(folder)


def test_a_folder_without_a_specification_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"function\.yaml"):
        bundle.folder_of(tmp_path)


def test_a_change_is_seen(folder: Path) -> None:
    before = bundle.fingerprint(folder)
    assert bundle.fingerprint(folder) == before
    (folder / "function.yaml").write_text("name: thumbs\n")
    assert bundle.fingerprint(folder) != before


@pytest.mark.parametrize("name", ["../x", "Thumbs", "", "a b", "x" * 64])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError):
        new.run(name, tmp_path)


def test_a_folder_that_is_there_is_left_alone(folder: Path) -> None:
    with pytest.raises(CommandError, match="exists"):
        new.run("thumbs", folder.parent)
