"""What is generated from the registry is what is committed, and holds together."""

import json

import pytest

from hearth_contracts import documents, registry, streams

from .conftest import ROOT


def test_every_generated_file_is_as_the_code_would_write_it(tool):
    assert tool.stale() == []


def test_a_file_edited_by_hand_is_found(tool, tmp_path):
    for path, text in tool.generate().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert tool.stale(tmp_path) == []
    (tmp_path / tool.REFERENCE / "subjects.md").write_text("edited")
    (tmp_path / tool.SCHEMAS / "call.v1.json").unlink()
    assert sorted(path.name for path in tool.stale(tmp_path)) == ["call.v1.json", "subjects.md"]


def references(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def without_schemas(document):
    return {**document, "components": {**document["components"], "schemas": {}}}


def test_the_asyncapi_document_refers_to_what_it_has():
    document = documents.asyncapi()
    assert document["asyncapi"] == "3.0.0"
    for reference in set(references(without_schemas(document))):
        at = document
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]
    for label, held in document["components"]["schemas"].items():
        for reference in set(references(held["schema"])):
            assert reference.removeprefix("#/$defs/") in held["schema"]["$defs"], (label, reference)


def test_the_asyncapi_document_names_every_part_of_every_service():
    document = documents.asyncapi()
    assert {contract.label for contract in registry.CONTRACTS} <= document["channels"].keys()
    for contract in registry.CONTRACTS:
        assert document["channels"][contract.label]["address"] == contract.subject
        for service in contract.producers:
            assert document["operations"][f"{service}.send.{contract.label}"]["action"] == "send"
        for service in contract.listeners:
            assert document["operations"][f"{service}.receive.{contract.label}"]["action"] == "receive"
    assert "reply" in document["operations"]["scheduler.send.moved.v1"]


@pytest.mark.parametrize("name", ["subjects.md", "streams.md", "permissions.md"])
def test_a_page_is_a_title_and_tables_without_gaps(name):
    text = documents.pages()[name]
    lines = text.splitlines()
    assert lines[2].startswith("# ")
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            width = line.count("|")
            for row in lines[number - 1 :]:
                if not row.startswith("|"):
                    break
                assert row.count("|") - row.count("\\|") == width, row


def test_the_tables_name_every_contract_and_stream():
    pages = documents.pages()
    assert all(f"`{contract.subject}`" in pages["subjects.md"] for contract in registry.CONTRACTS)
    assert all(f"| {stream.name} |" in pages["streams.md"] for stream in streams.STREAMS)
    assert all(f"## {service}\n" in pages["permissions.md"] for service in registry.SERVICES)


def test_the_settings_page_names_every_service_and_its_settings(tool):
    text = tool.settings_page()
    for service in registry.SERVICES:
        assert f"## {service}\n" in text
    assert "`HEARTH_NATS_URL`" in text
    assert "`OTEL_EXPORTER_OTLP_ENDPOINT`" in text
    row = next(line for line in text.splitlines() if "`HEARTH_BOOT`" in line)
    assert "made at the start" in row


def test_every_setting_says_what_it_means(tool):
    rows = [line for line in tool.settings_page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.split("|")[3].strip() == ""] == []


def test_published_schemas_are_json_schemas():
    for path in (ROOT / "contracts/schemas").glob("*.json"):
        schema = json.loads(path.read_text())
        assert schema["type"] == "object", path.name
        assert "properties" in schema or path.stem in ("event.v1", "invoke.v1"), path.name
