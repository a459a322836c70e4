"""The conformance suite's modules: they are run as plain scripts, and are no package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", CONFORMANCE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


client, run = load("client"), load("run")


@pytest.fixture(scope="session")
def conformance_client() -> ModuleType:
    return client


@pytest.fixture(scope="session")
def conformance_run() -> ModuleType:
    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "transcript" in metafunc.fixturenames:
        transcripts = run.transcripts()
        metafunc.parametrize("transcript", transcripts.values(), ids=transcripts)
