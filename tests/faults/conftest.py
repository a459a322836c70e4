"""Platforms to break."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "services/scheduler/tests/broker"))

from small_platform import SmallPlatform, small_platform
from tests.support.platform import Platform, started

from hearth_kit.pytest_plugin import Broker


@pytest.fixture
async def small(own_broker: Broker, tmp_path: Path) -> AsyncIterator[SmallPlatform]:
    """A broker, and the processes a test starts on it."""
    folder = tmp_path / "small"
    folder.mkdir()
    async with small_platform(own_broker, folder) as platform:
        yield platform


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two of what can be two, and two stores."""
    data = tmp_path_factory.mktemp("faults") / "data"
    stores = f"a={data}/store-a,b={data}/store-b"
    with started(
        data, "--executors", "2", "--schedulers", "2", env={"HEARTH_STORE_FOLDERS": stores, "HEARTH_SLOTS": "8"}
    ) as platform:
        yield platform
