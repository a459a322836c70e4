"""The services run on as few cores as they need while functions fill the machine, and on all of them else."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from hearth_cli.local import cores
from hearth_cli.local.cores import FULL_LOOKS, Choice, Seen, choose

FULL = Choice(full_looks=FULL_LOOKS)


@pytest.mark.parametrize(
    ("before", "seen", "kept"),
    [
        pytest.param(FULL, Seen(2, idle=0.02, services=0.99), 1, id="half of a full machine"),
        pytest.param(FULL, Seen(2, idle=0.02, services=1.5), 0, id="more than one core would hold"),
        pytest.param(FULL, Seen(2, idle=0.4, services=0.99), 0, id="a machine with room"),
        pytest.param(FULL, Seen(2, idle=0.0, services=0.1), 0, id="nothing to gain"),
        pytest.param(Choice(), Seen(2, idle=0.02, services=0.99), 0, id="the first look at a full machine"),
        pytest.param(FULL, Seen(16, idle=0.5, services=3.2), 3, id="a larger machine"),
        pytest.param(FULL, Seen(16, idle=0.5, services=17.9), 0, id="a machine full of services"),
        pytest.param(Choice(1), Seen(2, idle=0.05, services=0.93), 1, id="kept, full: stays"),
        pytest.param(Choice(1), Seen(2, idle=0.8, services=1.0), 0, id="kept, and short of cores"),
        pytest.param(Choice(1), Seen(2, idle=1.7, services=0.1), 0, id="kept, the load is over"),
        pytest.param(Choice(1), Seen(2, idle=0.0, services=0.1), 0, id="kept for little"),
    ],
)
def test_how_many_cores_the_services_get(before: Choice, seen: Seen, kept: int) -> None:
    assert choose(before, seen).kept == kept


def test_a_machine_must_be_full_for_some_looks_in_a_row() -> None:
    full, room = Seen(2, idle=0.0, services=0.9), Seen(2, idle=1.0, services=0.5)
    choice = choose(choose(Choice(), full), room)
    for _ in range(FULL_LOOKS - 1):
        choice = choose(choice, full)
        assert choice.kept == 0
    assert choose(choice, full).kept == 1


@contextlib.contextmanager
def _busy(count: int) -> Iterator[list[int]]:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield [one.pid for one in spinning]
    finally:
        for one in spinning:
            one.kill()
            one.wait()


@contextlib.asynccontextmanager
async def _keeping(pids: list[int]) -> AsyncIterator[None]:
    task = asyncio.create_task(cores.keep_together(lambda: pids, platform="p"))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.05)


async def test_processes_are_kept_together_while_others_fill_the_machine_and_let_go_after() -> None:
    """Given a service that works all the time, when functions fill every core, then it keeps to one; it has all again when
    they are gone. The functions may run everywhere throughout."""
    every = os.sched_getaffinity(0)
    assert len(every) > 1
    with _busy(1) as services:
        async with _keeping([*services, 2**22 + 1]):  # and one that is gone
            with _busy(len(every)) as functions:
                await _until(lambda: len(os.sched_getaffinity(services[0])) == 1)
                assert all(os.sched_getaffinity(pid) == every for pid in functions)
            await _until(lambda: os.sched_getaffinity(services[0]) == every)
