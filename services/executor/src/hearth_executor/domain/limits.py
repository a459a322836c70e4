"""What a sandbox may use: at boot, while code is loaded, and while it serves."""

from dataclasses import dataclass

from hearth_contracts.functions import CODE_PACKED_BYTES_MAX, CODE_UNPACKED_BYTES_MAX, FunctionVersion, memory_class_mb

MIB = 1024 * 1024

#: Processes and threads in one container, ours included: enough for a pool of workers, far from a fork bomb.
PIDS_MAX = 64

#: What the supervisor and the engine's init use themselves, MiB (measured 11-14): on top, so that the function keeps its own.
PLATFORM_MEMORY_MB = 16

#: Booting and importing run at one full CPU, whatever the function asked for: a start is short, and everyone waits for it.
BOOT_CPUS = 1.0

#: An import may take as long as a call, seconds, and this long at least: the first one reads cold files, and a short limit is
#: meant for the calls. With no limit of its own a function has the longest.
IMPORT_S_MIN = 10.0
IMPORT_S_MAX = 300.0

#: Archives rarely unpack to more than this many times their size; while code is unpacked the limit allows for it.
UNPACK_RATIO = 10


@dataclass(frozen=True, slots=True)
class Limits:
    memory_bytes: int
    cpus: float
    pids: int = PIDS_MAX


@dataclass(frozen=True, slots=True)
class Folders:
    """Sizes of the writable folders. Their pages count against the container's memory."""

    code_bytes: int
    scratch_bytes: int
    output_bytes: int
    shm_bytes: int
    inodes: int


def folders(class_mb: int) -> Folders:
    """By class, because a mount's size is fixed when the container is made. All but /code fit into the memory together,
    so that a full one is "no space left" and not "out of memory"; /code is paid for by a higher limit."""
    return Folders(
        code_bytes=CODE_UNPACKED_BYTES_MAX + CODE_PACKED_BYTES_MAX,
        scratch_bytes=class_mb * MIB // 2,
        output_bytes=class_mb * MIB // 4,
        shm_bytes=class_mb * MIB // 16,
        inodes=16_384,
    )


def at_boot(class_mb: int) -> Limits:
    """A generic container's, before it is known whom it will serve."""
    return Limits(memory_bytes=(class_mb + PLATFORM_MEMORY_MB) * MIB, cpus=BOOT_CPUS)


def while_loading(version: FunctionVersion) -> Limits:
    packed = version.code.size
    unpacked = min(packed * UNPACK_RATIO, CODE_UNPACKED_BYTES_MAX)
    memory = (version.spec.memory_mb + PLATFORM_MEMORY_MB) * MIB + packed + unpacked
    return Limits(memory_bytes=memory, cpus=max(BOOT_CPUS, version.spec.cpu))


def while_serving(version: FunctionVersion, unpacked_bytes: int) -> Limits:
    """The function's own memory whole, beside its code and the platform's processes."""
    memory = (version.spec.memory_mb + PLATFORM_MEMORY_MB) * MIB + unpacked_bytes
    return Limits(memory_bytes=memory, cpus=version.spec.cpu)


def import_s_max(version: FunctionVersion) -> float:
    return min(max(version.spec.timeout_s or IMPORT_S_MAX, IMPORT_S_MIN), IMPORT_S_MAX)


def class_mb(version: FunctionVersion) -> int:
    return memory_class_mb(version.spec.memory_mb)
