"""Recorded messages of every release: each is read by today's code, for ever (PROMISES 18)."""

import json
import shutil

import pytest

from hearth_contracts import schemas

from .conftest import ROOT

EXAMPLES = sorted((ROOT / "contracts/examples").glob("*/*.json"))


def test_every_contract_has_an_example():
    assert {path.parent.name for path in EXAMPLES} == set(schemas.models())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_example_is_read_and_means_what_it_said(path):
    written = json.loads(path.read_text())
    model = schemas.models()[path.parent.name]
    read = model.model_validate_json(path.read_text())
    said = json.loads(read.model_dump_json())
    assert _within(written, said)
    assert model.model_validate_json(read.model_dump_json(exclude_defaults=True)) == read


def _within(part, whole) -> bool:
    """Whether all that was written came through."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and _within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(part) == len(whole) and all(map(_within, part, whole))
    return part == whole


@pytest.mark.parametrize("label", sorted(set(schemas.models()) - {"function-spec.v1"}))
def test_a_field_of_a_later_release_is_ignored(label):
    """But in what people write themselves, where an unknown key is a mistake."""
    model = schemas.models()[label]
    for path in EXAMPLES:
        if path.parent.name == label:
            written = json.loads(path.read_text())
            assert model.model_validate({**written, "of_a_later_release": {"x": 1}}) == model.model_validate(written)


def test_examples_are_added_and_never_edited(tool, tmp_path):
    assert tool.edited() == []
    shutil.copytree(ROOT / tool.EXAMPLES, tmp_path / tool.EXAMPLES)
    (tmp_path / tool.EXAMPLES / "call.v1" / "full.json").write_text("{}")
    (tmp_path / tool.EXAMPLES / "run.v1" / "full.json").unlink()
    (tmp_path / tool.EXAMPLES / "run.v1" / "another.json").write_text("{}")
    assert tool.edited(tmp_path) == [
        "example call.v1/full.json was changed: put it back, and add another",
        "example run.v1/full.json was removed: put it back, and add another",
    ]


def test_every_example_has_its_sum(tool):
    listed = {line.split("  ")[1] for line in (ROOT / tool.EXAMPLES / tool.SUMS).read_text().splitlines()}
    assert listed == set(tool.sums())
