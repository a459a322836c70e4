"""What every store promises, on real disk."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from hearth_persister.adapters.folder import FolderStore, keys
from hearth_persister.errors import KeyMissing, ObjectCorrupt, StoreError
from hearth_persister.ports import Exists, Stored


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def chunked(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.fixture
async def store(tmp_path):
    store = FolderStore("local", tmp_path / "store")
    yield store
    store.close()


async def listed(store, prefix="objects/", after="") -> list[str]:
    return [key async for key in store.list(prefix, after=after)]


@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "chunks"])
async def test_a_key_is_written_once(store, streamed):
    def content(data: bytes):
        return chunked(data) if streamed else data

    first, other = b"a" * 2500, b"b" * 2500
    assert await store.put_new("objects/a/k", content(first), sha256=sha256(first)) == Stored(2500)
    assert await store.put_new("objects/a/k", content(first), sha256=sha256(first)) == Exists(equal=True)
    assert await store.put_new("objects/a/k", content(other), sha256=sha256(other)) == Exists(equal=False)
    assert await store.get("objects/a/k") == first
    assert list((store.root / ".writing").iterdir()) == []


@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "chunks"])
async def test_a_thousand_races_have_one_winner_each(store, tmp_path, streamed):
    rival = FolderStore("local", tmp_path / "store")
    for number in range(1000 if not streamed else 100):
        key, mine, theirs = f"objects/r/{number}", b"mine%d" % number, b"theirs%d" % number
        outcomes = await asyncio.gather(
            store.put_new(key, chunked(mine) if streamed else mine, sha256=sha256(mine)),
            rival.put_new(key, chunked(theirs) if streamed else theirs, sha256=sha256(theirs)),
        )
        assert sorted(isinstance(outcome, Stored) for outcome in outcomes) == [False, True]
        assert Exists(equal=False) in outcomes
        winner = mine if isinstance(outcomes[0], Stored) else theirs
        assert await store.get(key) == winner
    rival.close()


async def test_bytes_that_are_not_those_announced_are_not_kept(store):
    with pytest.raises(ObjectCorrupt):
        await store.put_new("objects/a/k", chunked(b"something"), sha256=sha256(b"something else"))
    assert await listed(store) == []
    assert list((store.root / ".writing").iterdir()) == []


async def test_a_source_that_breaks_off_leaves_nothing(store):
    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise ConnectionError("the broker went away")

    with pytest.raises(ConnectionError):
        await store.put_new("objects/a/k", broken(), sha256=sha256(b"first"))
    assert await listed(store) == []
    assert list((store.root / ".writing").iterdir()) == []


async def test_ranges(store):
    await store.put_new("objects/a/k", b"0123456789", sha256=sha256(b"0123456789"))
    assert await store.get("objects/a/k", start=2, length=3) == b"234"
    assert await store.get("objects/a/k", start=-3) == b"789"
    assert await store.get("objects/a/k", start=-30) == b"0123456789"
    assert b"".join([chunk async for chunk in store.read("objects/a/k")]) == b"0123456789"
    for read in (store.get("objects/a/none"), anext(store.read("objects/a/none"))):
        with pytest.raises(KeyMissing):
            await read


async def test_listing_is_in_order_and_goes_on_after_any_key(store):
    wanted = sorted(f"objects/{a}/{b:03d}/{c:04d}" for a in "ab" for b in range(5) for c in range(60))
    for key in reversed(wanted):
        (store.root / key).parent.mkdir(parents=True, exist_ok=True)
        (store.root / key).touch()
    assert await listed(store) == wanted
    for index in (0, 59, 60, 299, 300, 599):
        assert await listed(store, after=wanted[index]) == wanted[index + 1 :]
    assert await listed(store, after="objects/a/002") == [key for key in wanted if key > "objects/a/002"]
    assert await listed(store, "objects/b/") == [key for key in wanted if key.startswith("objects/b/")]
    assert list(keys(store.root, "nothing/")) == []


async def test_deleting_twice_is_once(store):
    await store.put_new("objects/a/k", b"x", sha256=sha256(b"x"))
    await store.delete("objects/a/k")
    await store.delete("objects/a/k")
    assert await listed(store) == []


@pytest.mark.parametrize("key", ["../outside", "objects/../../outside", "/etc/x", "objects/%2e%2e/x/..", "a\0b", "x" * 1025, ""])
async def test_foreign_keys_are_refused_before_the_disk_is_touched(store, key):
    for call in (store.put_new(key, b"x", sha256=sha256(b"x")), store.get(key), store.delete(key)):
        with pytest.raises(ValueError):
            await call
    assert not (store.root.parent / "outside").exists()


async def test_a_folder_that_cannot_be_written_says_so_and_works_again_once_it_can(store):
    store.root.write_text("a file where the folder should be")
    for call in (store.check(), store.put_new("objects/a/k", b"x", sha256=sha256(b"x"))):
        with pytest.raises(StoreError):
            await call
    store.root.unlink()
    await store.check()
    assert await store.put_new("objects/a/k", b"x", sha256=sha256(b"x")) == Stored(1)


async def test_a_folder_removed_behind_its_back_is_made_again(store):
    await store.put_new("objects/a/k", b"x", sha256=sha256(b"x"))
    os.unlink(store.root / "objects/a/k")
    os.rmdir(store.root / "objects/a")
    os.rmdir(store.root / "objects")
    with pytest.raises(StoreError):
        await store.put_new("objects/a/k", b"x", sha256=sha256(b"x"))
    assert await store.put_new("objects/a/k", b"x", sha256=sha256(b"x")) == Stored(1)


async def test_what_a_crash_left_half_written_is_swept_once_it_is_old(store):
    await store.check()
    old, young = store.root / ".writing" / "old", store.root / ".writing" / "young"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    await store.check()
    assert not old.exists()
    assert young.exists()
    assert await listed(store) == []
