"""The published schemas, and what may change in them."""

import copy
import json

import pytest

from hearth_contracts import schemas

from .conftest import ROOT


def published():
    return {path.stem: json.loads(path.read_text()) for path in (ROOT / "contracts/schemas").glob("*.json")}


def test_each_contract_is_published_as_it_is():
    assert published() == json.loads(json.dumps(schemas.generate()))


def test_nothing_breaks_what_is_published(tool):
    assert tool.broken() == []


def record():
    return copy.deepcopy(published()["record.v1"])


def change(*path, value=None, remove=False):
    def apply(schema):
        at = schema
        for key in path[:-1]:
            at = at[key]
        if remove:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return schema

    return apply


def require(name, *definition):
    def apply(schema):
        at = schema
        for key in definition:
            at = at[key]
        at.setdefault("properties", {}).setdefault(name, {"type": "string"})
        at["required"] = [*at.get("required", []), name]
        return schema

    return apply


BREAKING = {
    "removed field": change("properties", "trace_id", remove=True),
    "removed field of a part": change("$defs", "Usage", "properties", "cpu_ms", remove=True),
    "new required field": require("region"),
    "new required field of a part": require("region", "$defs", "Body"),
    "a field that becomes required": require("trace_id"),
    "changed type": change("properties", "version", "type", value="string"),
    "changed type of a part": change("$defs", "Timings", "properties", "cold_ms", "additionalProperties", "type", value="string"),
    "changed element": change(
        "$defs", "Ending", "properties", "http_headers", "items", "prefixItems", value=[{"type": "string"}]
    ),
    "changed default": change("properties", "persist", "default", value=False),
    "a word that may not be said any more": change("$defs", "Reason", "enum", value=["error"]),
    "no longer nullable": change("$defs", "Ending", "properties", "reason", value={"$ref": "#/$defs/Reason"}),
    "another part": change("properties", "input", "$ref", value="#/$defs/Usage"),
    "a field that may be left out": change("required", value=["job"]),
    "a narrower bound": change("properties", "job", "maxLength", value=5),
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_change_that_breaks_somebody_is_found(name):
    changed = BREAKING[name](record())
    assert schemas.breaks(record(), changed), name


COMPATIBLE = {
    "nothing": lambda schema: schema,
    "new field with a default": change("properties", "region", value={"type": "string", "default": ""}),
    "new field of a part": lambda schema: change(
        "$defs", "Body", "properties", "encoding", value={"type": "string", "default": ""}
    )(change("properties", "input", "default", value={**record()["properties"]["input"]["default"], "encoding": ""})(schema)),
    "new word": change("$defs", "Reason", "enum", value=[*record()["$defs"]["Reason"]["enum"], "preempted"]),
    "other prose": change("description", value="other words"),
}


@pytest.mark.parametrize("name", COMPATIBLE)
def test_a_change_that_nobody_notices_is_allowed(name):
    assert schemas.breaks(record(), COMPATIBLE[name](record())) == []


def test_the_tool_refuses_to_publish_a_break(tool, tmp_path, monkeypatch, capsys):
    """The published schema knows a field that the code no longer has."""
    folder = tmp_path / tool.SCHEMAS
    folder.mkdir(parents=True)
    old = record()
    old["properties"]["was_here"] = {"type": "string", "default": ""}
    (folder / "record.v1.json").write_text(json.dumps(old))
    (folder / "gone.v1.json").write_text("{}")
    assert tool.broken(tmp_path) == [
        "gone.v1 is gone: it is served until nobody can hold a message of it any more",
        "record.v1: was_here is gone; make a new version beside it",
    ]
