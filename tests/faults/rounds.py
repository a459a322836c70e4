"""How often a fault is injected."""

import pytest


def rounds(few: int, many: int) -> list[object]:
    """As many as continuous integration has time for, and as many as the promise names (`./hearth test --all`)."""
    return [few, pytest.param(many, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
