"""Platforms to break."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "services/scheduler/tests/broker"))

from small_platform import SmallPlatform, small_platform

from hearth_kit.pytest_plugin import Broker


@pytest.fixture
async def small(own_broker: Broker, tmp_path: Path) -> AsyncIterator[SmallPlatform]:
    """A broker, and the processes a test starts on it."""
    folder = tmp_path / "small"
    folder.mkdir()
    async with small_platform(own_broker, folder) as platform:
        yield platform
