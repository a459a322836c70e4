"""Streams as data: what the delivery rules rest on is written in them."""

import pytest

from hearth_contracts import registry, streams

EVERY = pytest.mark.parametrize("stream", streams.STREAMS, ids=lambda stream: stream.name)
WORK = {"CALLS", "JOBS", "RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC", "AI"}


@EVERY
def test_every_stream_has_a_limit_and_a_reason(stream):
    config = stream.config()
    assert config["max_bytes"] > 0
    assert config["allow_direct"] is True
    assert stream.why
    assert not config["max_age"] or config["duplicate_window"] <= config["max_age"]


@EVERY
def test_work_queues_refuse_what_is_too_much_and_never_drop(stream):
    assert (stream.retention == "workqueue") == (stream.name in WORK)
    if stream.retention == "workqueue" or stream.name == "RECORDS":
        assert stream.discard == "new"
        assert stream.max_age_s in (0, streams.DAY_S)


def test_the_sync_lane_is_memory_and_the_async_lane_is_not():
    lanes = {stream.name: stream.storage for stream in streams.STREAMS}
    assert {lanes[name] for name in ("CALLS", "RUNS_SYNC", "OUTCOMES_SYNC", "REPLIES")} == {"memory"}
    assert {lanes[name] for name in ("JOBS", "RUNS", "OUTCOMES", "RECORDS", "STATES", "DEAD")} == {"file"}
    assert lanes["KV_LEASES"] == "file"  # its revisions are epochs, which only rise


def test_records_are_fenced_by_nothing_that_forgets():
    """The one final is kept by an expectation on its subject: no limit per subject, no rollup may take it away."""
    config = streams.RECORDS.config()
    assert config["max_msgs_per_subject"] == -1
    assert "allow_rollup_hdrs" not in config
    assert "allow_msg_ttl" not in config


def test_names_and_subjects_are_each_there_once():
    names = [stream.name for stream in streams.STREAMS]
    assert len(set(names)) == len(names)
    subjects = [subject for stream in streams.STREAMS for subject in stream.subjects]
    assert len(set(subjects)) == len(subjects)
    assert set(streams.FILE_STREAMS) | set(streams.MEMORY_STREAMS) == set(streams.STREAMS)


def test_every_stream_is_used():
    used = {contract.stream for contract in registry.CONTRACTS} | {use.stream for use in registry.BUCKETS}
    assert set(streams.STREAMS) == used - {None}


def test_a_replicated_stream_says_so():
    assert streams.JOBS.config(replicas=3)["num_replicas"] == 3
