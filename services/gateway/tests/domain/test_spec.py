"""function.yaml: what is taken, what is refused, in whose words, and how fast."""

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth_contracts.functions import NOT_AVAILABLE
from hearth_gateway.domain import spec, yaml_tree
from hearth_gateway.errors import NotAvailable, SpecInvalid

GOOD = """
name: resize
runtime: python
handler: main:handle   # a comment
memory_mb: 256
env: {GREETING: no, SWITCH: on, PORT: "8080", TIME: 12:30}
scale:
  min_warm: 1
  max: 5
retry: {attempts: 3, backoff_s: [1, 5]}
"""


def test_a_good_one_is_read_as_it_looks():
    found = spec.from_text(GOOD, name="resize")
    assert found.memory_mb == 256
    assert found.env == {"GREETING": "no", "SWITCH": "on", "PORT": "8080", "TIME": "12:30"}
    assert found.scale.max == 5
    assert found.retry.backoff_s == (1, 5)


def test_the_name_may_be_left_to_the_address_but_never_differ():
    assert spec.from_text("runtime: python", name="a").name == "a"
    with pytest.raises(SpecInvalid, match="the address"):
        spec.from_text("name: b", name="a")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (BOMB, 2, "aliases"),
        ("a: 1\nb: 2\na: 3", 3, "twice"),
        ("env:\n  A: x\n  A: y", 3, "twice"),
        ("a: !!python/object/apply:os.system [id]", 1, "tag"),
        ("a: !mine x", 1, "tag"),
        ("a: !!binary aGVsbG8=", 1, "tag"),
        ("name: a\n---\nname: b", 2, "more than one document"),
        ("a:\n  - [1, 2\n", 3, ""),
        ("a: 'x", 1, ""),
        ("\ta: b", 1, ""),
        ("a: " + "[" * 5000, 1, "nested"),
        ("a: " + "{b: " * 500, 1, "nested"),
        ("{[1, 2]: 3}", 1, "single word"),
        ("x" * 70_000, 1, "larger"),
        ("[" + "a," * 20_000 + "]", 1, "more than"),
        ("a: \x07", 1, ""),
        ("%YAML 9.9\n---\na: b", 1, ""),
        ("a: *nowhere", 1, "aliases"),
        ("<<: {a: b}", 1, "no such key"),
        ("memory_mb: 99999999999999999999999999999999999999999999999999", 1, ""),
        ("timeout_s: .inf", 1, ""),
        ("timeout_s: yes", 1, ""),
        ("name: a\n\nmemory: 3", 3, "did you mean memory_mb"),
        ("scale:\n  min_warn: 3", 2, "did you mean min_warm"),
        ("retry:\n  attempts: 0", 2, "greater than"),
        ("scale:\n  max: 2\n  min_warm: 5", 3, "scale.min_warm is 5, more than scale.max, which is 2"),
        ("scale: {min_warm: 21}", 1, "scale.max, which is 20"),
        ("env:\n  PORT: 8080", 2, "quotes"),
        ("env: [a]", 1, ""),
        ("handler: 'a; rm -rf /:b'", 1, "module:function"),
        ("handler: ../x:y", 1, "module:function"),
        ('handler: "main:handle\\nx"', 1, "module:function"),
        ("placement: {zone: 'a b'}", 1, ""),
        ("env: {HEARTH_X: a}", 1, "HEARTH_"),
        ("env: {LD PRELOAD: a}", 1, "variable"),
        ("~", 0, "keys and values"),
        ("", 0, "keys and values"),
        ("just words", 0, "keys and values"),
        ("- a\n- b", 0, "keys and values"),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(text, line, says):
    started = time.perf_counter()
    with pytest.raises(SpecInvalid) as caught:
        spec.from_text(text, name="a")
    assert time.perf_counter() - started < 0.2
    problem = caught.value.problem
    assert problem.status == 422
    whole = problem.detail + "".join(error.message + error.hint for error in problem.errors)
    assert says in whole
    if line:
        assert problem.errors[0].line == line, problem


@pytest.mark.parametrize("key", sorted(NOT_AVAILABLE))
def test_a_feature_that_is_not_offered_is_refused_by_its_name(key):
    with pytest.raises(NotAvailable) as caught:
        spec.from_data({key: []}, name="a")
    assert caught.value.problem.errors[0].field == key
    assert key in caught.value.problem.detail


@pytest.mark.parametrize(
    ("given_spec", "field"),
    [
        ({"runtime": "go"}, "runtime"), ({"runtime": "node"}, "runtime"), ({"runtime": "cpp"}, "runtime"),
        ({"runtime": "wasm"}, "runtime"),
        ({"backend": "wasm"}, "backend"), ({"concurrency": 4}, "concurrency"), ({"queue": {"key": "user"}}, "queue.key"),
        ({"queue": {"rate": "10/s"}}, "queue.rate"), ({"scale": {"run": "always"}}, "scale.run"),
    ],
)  # fmt: skip
def test_choices_that_are_not_offered_yet(given_spec, field):
    with pytest.raises(NotAvailable) as caught:
        spec.from_data(given_spec, name="a")
    assert [error.field for error in caught.value.problem.errors] == [field]


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=300), st.text(alphabet="{}[]:,-&*!|>'\"#%@\n\t ab1~?", max_size=300)))
def test_no_text_whatever_breaks_the_reader(text):
    with contextlib.suppress(SpecInvalid, NotAvailable):  # and nothing else
        spec.from_text(text, name="a")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["name", "env", "scale", "retry", "queue", "placement", "timeout_s", "memory_mb", "cpu", "handler", "x"])


@settings(max_examples=300)
@given(st.dictionaries(keys, values, max_size=6) | values)
def test_no_data_whatever_breaks_the_checks(data):
    with contextlib.suppress(SpecInvalid, NotAvailable):  # and nothing else
        spec.from_data(data, name="a")


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=60), st.text(alphabet="ab.:/; $()`'\"\n\0-|&<>*?~=\\\u00e9", max_size=30)))
def test_a_handler_is_the_name_of_a_function_or_is_refused(text):
    """Nothing in it could mean anything to a shell, a path or an argument list."""
    with contextlib.suppress(SpecInvalid):
        taken = spec.from_data({"handler": text}, name="a").handler
        module, _, function = taken.replace(":", ".").rpartition(".")
        assert all(part.isidentifier() for part in (*module.split("."), function)), taken


def test_lines_lead_to_every_part():
    tree = yaml_tree.parse("a:\n  b:\n    - x\n    - y: 1\n")
    assert tree.lines[("a",)] == 1
    assert tree.lines[("a", "b")] == 2
    assert tree.lines[("a", "b", 0)] == 3
    assert tree.lines[("a", "b", 1, "y")] == 4


def test_plain_words_are_read_as_yaml_1_2_reads_them():
    text = "[1, -2, 1.5, 1e3, true, False, null, ~, '1', \"true\", no, on, 0x10, 12:30, 2001-01-01, !!str 7]"
    expected = [1, -2, 1.5, 1000.0, True, False, None, None, "1", "true", "no", "on", "0x10", "12:30", "2001-01-01", "7"]
    assert yaml_tree.parse(text).data == expected


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_both_parsers_read_the_same(loader, monkeypatch):
    import yaml

    monkeypatch.setattr(yaml_tree, "_LOADER", getattr(yaml, loader))
    tree = yaml_tree.parse(GOOD)
    assert tree.data["memory_mb"] == 256
    assert tree.data["env"]["PORT"] == "8080"
    assert tree.lines[("scale", "max")] == 9
