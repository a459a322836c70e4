"""Keys are ours only: whatever is put into one, it stays below its folder or is refused."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth_contracts import names
from hearth_persister.domain import object_key

EPOCH = object_key.epoch("2026-01-31T23:59:59.123456789Z")
HOSTILE = [
    "../x", "..", ".", "", "/etc/passwd", "a/../../x", "%2e%2e/x", "a\0b", "x" * 1025, "a b", "a\nb", "~root", "é", "a//b",
    "\\..\\x", "job.result", "-rf", "a%00", "A", "1a",
]  # fmt: skip


def test_keys_sort_by_tenant_function_and_day_and_segments_by_sequence():
    job = names.new_job("hello", 1_769_903_999.5)
    assert object_key.body("acme", job, "result") == f"objects/acme/hello/2026-01-31/{job}.result"
    assert EPOCH == "20260131235959123456-00"
    keys = [object_key.segment(EPOCH, first) for first in (1, 2, 9_999, 10_000, 10_001, 123_456_789, 10**15)]
    assert keys == sorted(keys)
    assert [object_key.parse_segment(key) for key in keys][3] == (EPOCH, 10_000)


def test_an_output_file_has_a_number_where_people_chose_a_name():
    job = names.new_job("hello", 1.0)
    assert object_key.body("acme", job, "output-12") == f"objects/acme/hello/1970-01-01/{job}.output-12"
    for part in ("output-0", "output-", "output-x", "output-1/..", "output-123456", "output", "output-1\n"):
        with pytest.raises(ValueError):
            object_key.body("acme", job, part)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_never_become_keys(text):
    job = names.new_job("hello", 1.0)
    for make in (
        lambda: object_key.body(text, job, "result"),
        lambda: object_key.body("acme", text, "result"),
        lambda: object_key.body("acme", job, text),
        lambda: object_key.segment(text, 1),
        lambda: object_key.undecodable(text, 1),
    ):
        with pytest.raises(ValueError):
            make()


@given(st.text(alphabet=string.printable + "\0é/.%", max_size=40))
def test_whatever_is_taken_for_a_key_stays_below_the_root(text):
    try:
        key = object_key.valid(text)
    except ValueError:
        return
    parts = key.split("/")
    assert not key.startswith("/")
    assert all(part not in ("", ".", "..") and "\0" not in part for part in parts)


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=12))
def test_any_tenant_job_and_part_give_a_valid_key_or_none(tenant, job, part):
    try:
        key = object_key.body(tenant, job, part)
    except ValueError:
        return
    assert object_key.valid(key) == key
    assert key.startswith(f"objects/{tenant}/")


def test_a_stream_that_went_back_gets_a_later_epoch():
    later = object_key.next_generation(EPOCH)
    assert later > EPOCH
    assert object_key.parse_segment(object_key.segment(later, 1)) == (later, 1)


@pytest.mark.parametrize("created", ["2026-01-31T23:59:59Z", "2026-01-31T23:59:59.1Z", "2026-01-31T23:59:59.123456789Z"])
def test_epochs_have_one_length_however_the_broker_writes_the_time(created):
    assert object_key.parse_segment(object_key.segment(object_key.epoch(created), 1)) is not None
