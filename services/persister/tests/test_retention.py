"""Records leave the broker once every store has them, and not before."""

import asyncio
import os
import sys

import pytest

from hearth_kit.bus import ConsumerSpec

pytestmark = pytest.mark.broker


async def held(bus) -> int:
    return (await bus.stream_info("RECORDS")).messages


async def test_records_stay_for_their_grace_and_then_leave(platform, records, stores, bus, until):
    process = await platform.start(env={"HEARTH_RECORDS_GRACE_S": "3600"})
    await records.many(100)
    await stores.complete(records=records)
    assert await held(bus) == 100
    await process.stop()

    await platform.start(env={"HEARTH_RECORDS_GRACE_S": "0.5"})

    async def empty() -> bool:
        return await held(bus) == 0

    await until(empty)
    stores.check(records=records)


async def test_nothing_leaves_that_one_store_lacks(platform, records, stores, bus, until):
    platform.store("b").write_text("not a folder")
    await platform.start("a", "b", env={"HEARTH_RECORDS_GRACE_S": "0", "HEARTH_RECORDS_KEPT_MAX": "10"})
    await records.many(100)
    await stores.complete("a", records=records)
    assert await held(bus) == 100

    platform.store("b").unlink()

    async def empty() -> bool:
        return await held(bus) == 0

    await until(empty)
    stores.check("a", "b", records=records)


async def test_many_records_leave_before_their_grace_has_passed(platform, records, stores, bus, until):
    await platform.start(env={"HEARTH_RECORDS_GRACE_S": "3600", "HEARTH_RECORDS_KEPT_MAX": "50"})
    await records.many(300)
    await stores.complete(records=records)

    async def fewer() -> bool:
        return await held(bus) == 50

    await until(fewer)


async def test_a_store_configured_no_longer_holds_records_back_until_it_is_forgotten(platform, records, stores, bus, until):
    await bus.ensure_consumer(ConsumerSpec("RECORDS", "store_old", ack_all=True))
    await platform.start(env={"HEARTH_RECORDS_GRACE_S": "0"})
    await records.many(50)
    await stores.complete(records=records)
    assert await held(bus) == 50

    async def forget(name: str) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hearth_persister", "forget", name, stderr=asyncio.subprocess.PIPE,
            env={**platform.environment("operator", ("local",)), "PATH": os.environ["PATH"]},
        )  # fmt: skip
        _, said = await process.communicate()
        return process.returncode or 0, said

    code, said = await forget("local")
    assert code == 1
    assert b"is configured" in said
    code, said = await forget("nothing")
    assert code == 1
    assert (await forget("old"))[0] == 0

    async def empty() -> bool:
        return await held(bus) == 0

    await until(empty)
