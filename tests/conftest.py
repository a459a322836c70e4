"""Whole platforms for tests: one shared by the tests that only use it, fresh ones for the tests that break it."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.platform import Client, Platform, client, started


@pytest.fixture(scope="session")
def shared_platform() -> Iterator[Platform]:
    """A platform with three executors that many tests call. None of them may harm it."""
    folder = Path(tempfile.mkdtemp(prefix="hearth-e2e-"))
    try:
        with started(folder, "--executors", "3", env={"HEARTH_SLOTS": "4"}) as platform:
            yield platform
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def hearth(shared_platform: Platform) -> AsyncIterator[Client]:
    async with client(shared_platform) as speaker:
        yield speaker


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
