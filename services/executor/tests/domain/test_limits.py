"""What a sandbox may use, at each stage of its life."""

import pytest

from hearth_contracts.functions import CodeRef, FunctionSpec, FunctionVersion
from hearth_executor.domain import limits
from hearth_executor.domain.limits import MIB


def version(*, packed: int = 1000, **spec) -> FunctionVersion:
    return FunctionVersion(
        tenant="acme", function="f", version=1, digest="0" * 64, spec=FunctionSpec(name="f", **spec),
        code=CodeRef(object="x", kind="zip", size=packed, sha256="0" * 64), created_at=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("memory_mb", "class_mb"), [(32, 128), (128, 128), (129, 256), (1000, 1024)])
def test_a_function_gets_the_smallest_class_that_holds_it(memory_mb, class_mb):
    assert limits.class_mb(version(memory_mb=memory_mb)) == class_mb


def test_the_function_keeps_its_memory_whole_beside_code_and_platform():
    serving = limits.while_serving(version(memory_mb=100), unpacked_bytes=7 * MIB)
    assert serving.memory_bytes == (100 + limits.PLATFORM_MEMORY_MB + 7) * MIB


def test_unpacking_has_room_for_what_the_archive_may_hold_and_no_more_than_it_may():
    small = limits.while_loading(version(packed=1000))
    large = limits.while_loading(version(packed=50 * MIB))
    assert small.memory_bytes < 145 * MIB
    assert large.memory_bytes == (128 + limits.PLATFORM_MEMORY_MB + 50 + 250) * MIB


def test_importing_has_a_whole_processor_and_serving_what_was_asked_for():
    assert limits.while_loading(version(cpu=0.25)).cpus == 1.0
    assert limits.while_serving(version(cpu=0.25), 0).cpus == 0.25
    assert limits.while_loading(version(cpu=2)).cpus == 2


@pytest.mark.parametrize("class_mb", [128, 512, 4096])
def test_full_folders_are_no_space_left_and_not_out_of_memory(class_mb):
    """All writable folders but /code fit into the memory together."""
    sizes = limits.folders(class_mb)
    assert sizes.scratch_bytes + sizes.output_bytes + sizes.shm_bytes < class_mb * MIB
