"""The index answers, and is only ever a copy of what the store says."""

import pytest

from hearth_contracts.calls import ArchiveQuery
from hearth_persister.adapters.index import Index
from hearth_persister.domain import object_key, segment
from hearth_persister.domain.entry import Entry, Summary

EPOCH = "20260131235959123456-00"


def segment_of(numbers: range, *, tenant: str = "default") -> tuple[str, segment.Directory]:
    entries = [
        Entry(
            number, number * 1_000_000, b"{}", b"",
            Summary(
                f"{'hello' if number % 2 else 'other'}-{number:026d}", tenant, "hello" if number % 2 else "other", 1, "sync",
                "FAILED" if number % 10 == 0 else "SUCCESS", "error" if number % 10 == 0 else "", "warm", 1, float(number // 3),
                float(number), 1.5,
            ),
        )
        for number in numbers
    ]  # fmt: skip
    encoded = segment.encode(epoch=EPOCH, first=numbers[0], last=numbers[-1], entries=entries, bodies={})
    return object_key.segment(EPOCH, numbers[0]), encoded.directory


@pytest.fixture
async def index(tmp_path):
    index = Index(tmp_path / "sub" / "local.index")
    await index.open()
    yield index
    await index.close()


async def everything(index: Index, limit: int = 7, **words) -> list[str]:
    query, found = ArchiveQuery(tenant="default", **words), []
    while True:
        page = await index.page(query, limit=limit)
        assert len(page.jobs) <= limit
        found += [job["job"] for job in page.jobs]
        if not page.next:
            return found
        query = query.model_copy(update={"cursor": page.next})


async def test_pages_by_function_state_and_time_hold_everything_once_newest_first(index):
    await index.add([segment_of(range(1, 101)), segment_of(range(101, 201))])
    rows = sorted(((float(n // 3), f"{'hello' if n % 2 else 'other'}-{n:026d}", n) for n in range(1, 201)), reverse=True)

    assert await everything(index) == [job for _, job, _ in rows]
    assert await everything(index, function="hello") == [job for _, job, n in rows if n % 2]
    assert await everything(index, state="FAILED") == [job for _, job, n in rows if n % 10 == 0]
    assert await everything(index, function="other", state="SUCCESS") == [job for _, job, n in rows if n % 2 == 0 and n % 10]
    assert await everything(index, since=20, until=40) == [job for at, job, _ in rows if 20 <= at < 40]
    assert await everything(index, function="none") == []


async def test_one_tenants_jobs_are_nobody_elses(index):
    await index.add([segment_of(range(1, 11), tenant="acme")])
    job = f"hello-{1:026d}"
    assert await index.place("acme", job) is not None
    assert await index.place("default", job) is None
    assert await everything(index) == []


async def test_the_same_segment_twice_is_once_and_a_job_in_two_segments_counts_once(index):
    one = segment_of(range(1, 11))
    assert await index.add([one]) == 0
    assert await index.add([one]) == 0
    key, again = segment_of(range(5, 16))
    assert await index.add([(key, again)]) == 6
    assert await index.count() == 15
    assert await index.known([f"hello-{1:026d}", "hello-nobody"]) == {f"hello-{1:026d}"}
    head = await index.head()
    assert head is not None
    assert (head.last, head.key) == (15, key)


async def test_a_cursor_that_is_not_ours_is_refused(index):
    with pytest.raises(ValueError):
        await index.page(ArchiveQuery(tenant="default", cursor="x'; DROP TABLE jobs"), limit=5)


async def test_a_broken_file_is_made_anew(tmp_path):
    path = tmp_path / "local.index"
    path.write_bytes(b"this is no database" * 1000)
    index = Index(path)
    await index.open()
    assert await index.head() is None
    await index.add([segment_of(range(1, 11))])
    await index.close()
    again = Index(path)
    await again.open()
    assert await again.count() == 10
    await again.close()


async def test_times_lead_to_sequences(index):
    await index.add([segment_of(range(1, 11)), segment_of(range(11, 21))])
    assert await index.last_before(EPOCH, 9_999_999) == 0
    assert await index.last_before(EPOCH, 10_000_000) == 10
    assert await index.last_before(EPOCH, 10**12) == 20
    assert await index.last_before("20270131235959123456-00", 10**12) == 0
    assert await index.at(EPOCH, 15) == (f"hello-{15:026d}", 15)
