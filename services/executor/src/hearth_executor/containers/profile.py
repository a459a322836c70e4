"""The hardened profile: how every container is made, and how anyone can check that it was.

`create_config` is the only place where the engine's options are written down; `deviations` reads them back from the
engine, and `inside_deviations` what a process inside reads of itself. Together they cover sections 5.2, 5.4-5.6, 5.10-5.13,
5.16-5.22, 5.26, 5.29, 5.31 and 5.32 of the CIS Docker benchmark.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from hearth_executor.containers.container import SUPERVISOR, LinkMode
from hearth_executor.domain.limits import MIB, PIDS_MAX, Folders, Limits

LABEL_PLATFORM = "hearth.platform"
LABEL_EXECUTOR = "hearth.executor"
LABEL_BOOT = "hearth.boot"
LABEL_RUNTIME = "hearth.runtime"
LABEL_CLASS = "hearth.class"
LABEL_UID = "hearth.uid"
LABELS = (LABEL_PLATFORM, LABEL_EXECUTOR, LABEL_BOOT, LABEL_RUNTIME, LABEL_CLASS, LABEL_UID)

#: Nobody listens there, inside or outside: a name lookup fails at once instead of waiting, and the host's own resolver's
#: address does not leak in.
DEAD_DNS = "127.0.0.1"

NOFILE_MAX = 1024

RUNTIMES = ("runc", "runsc")

#: What a function has no business reading, beyond the engine's own list; and the message queues, which would outlive a call.
MASKED = (
    "/dev/mqueue",
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose container it is: platforms and executors that share an engine tell theirs apart by this."""

    platform: str
    executor: str
    boot: str


@cache
def seccomp() -> str:
    """Our system call filter, compact: an allow-list, so that what a new kernel brings is refused until looked at."""
    text = resources.files("hearth_executor.containers").joinpath("seccomp.json").read_text()
    document = json.loads(text)
    for rule in document["syscalls"]:
        rule.pop("comment", None)
    return json.dumps(document, separators=(",", ":"), sort_keys=True)


def create_config(
    *,
    image: str,
    owner: Owner,
    runtime: str,
    class_mb: int,
    uid: int,
    mode: LinkMode,
    socket_name: str,
    limits: Limits,
    folders: Folders,
    oci_runtime: str = "runc",
) -> dict[str, Any]:
    """The engine's create request for one container."""
    return {
        "Image": image,
        "Entrypoint": list(SUPERVISOR),
        "Cmd": [f"fast:{socket_name}" if mode == "fast" else "stdio"],
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=/tmp", "TMPDIR=/tmp", "PYTHONDONTWRITEBYTECODE=1"],
        "WorkingDir": "/",
        "User": f"{uid}:{uid}",
        "Hostname": "sandbox",
        "Domainname": "",
        "Tty": False,
        "OpenStdin": mode == "stdio",
        "StdinOnce": mode == "stdio",
        "AttachStdin": mode == "stdio",
        "AttachStdout": mode == "stdio",
        "AttachStderr": mode == "stdio",
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "Labels": {
            LABEL_PLATFORM: owner.platform,
            LABEL_EXECUTOR: owner.executor,
            LABEL_BOOT: owner.boot,
            LABEL_RUNTIME: runtime,
            LABEL_CLASS: str(class_mb),
            LABEL_UID: str(uid),
        },
        "HostConfig": {
            "Runtime": oci_runtime,
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Privileged": False,
            "CapDrop": ["ALL"],
            "CapAdd": [],
            "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp()}"],
            "PidMode": "",
            "UTSMode": "",
            "UsernsMode": "",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "PidsLimit": limits.pids,
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,
            "NanoCpus": int(limits.cpus * 1e9),
            "OomScoreAdj": 500,  # when the machine itself runs out, functions go before services
            "Ulimits": [
                {"Name": "nofile", "Soft": NOFILE_MAX, "Hard": NOFILE_MAX},
                {"Name": "fsize", "Soft": folders.code_bytes, "Hard": folders.code_bytes},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "Tmpfs": tmpfs(folders, uid),
            "ShmSize": folders.shm_bytes,
            "LogConfig": {"Type": "none", "Config": {}},
            "Init": mode == "fast",
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Binds": [],
            "Devices": [],
            "Dns": [DEAD_DNS],
            "DnsSearch": ["."],
            "MaskedPaths": list(MASKED),
            "ReadonlyPaths": list(READ_ONLY),
        },
    }


def tmpfs(folders: Folders, uid: int) -> dict[str, str]:
    """Every writable folder. Code is its own, the only one from which something may be executed."""
    scratch = "rw,noexec,nosuid,nodev,mode=1777"
    own = f"nosuid,nodev,uid={uid},gid={uid},mode=0700"
    return {
        "/tmp": f"{scratch},size={folders.scratch_bytes},nr_inodes={folders.inodes}",
        "/dev/shm": f"{scratch},size={folders.shm_bytes},nr_inodes={folders.inodes}",
        "/output": f"rw,noexec,{own},size={folders.output_bytes},nr_inodes={folders.inodes}",
        "/code": f"rw,exec,{own},size={folders.code_bytes},nr_inodes={folders.inodes * 4}",
    }


def deviations(inspected: Mapping[str, Any]) -> list[str]:
    """How a container differs from the profile, by the engine's own inspect document; empty when it does not."""
    host: Mapping[str, Any] = inspected["HostConfig"]
    config: Mapping[str, Any] = inspected["Config"]
    labels: Mapping[str, str] = config.get("Labels") or {}
    user = str(config.get("User") or "")
    command = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    fast = len(command) == len(SUPERVISOR) + 1 and command[-1].startswith("fast:")
    ulimits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host.get("Ulimits") or []}
    options = list(host.get("SecurityOpt") or [])
    networks = set((inspected.get("NetworkSettings") or {}).get("Networks") or {})
    checks: dict[str, bool] = {
        "NetworkMode is none": host.get("NetworkMode") == "none" and networks <= {"none"},
        "ReadonlyRootfs": host.get("ReadonlyRootfs") is True,
        "Privileged false": host.get("Privileged") is False,
        "CapDrop ALL": host.get("CapDrop") == ["ALL"],
        "no CapAdd": not host.get("CapAdd"),
        "no-new-privileges": any(option in options for option in ("no-new-privileges", "no-new-privileges:true")),
        "our seccomp profile": _seccomp_of(options) == seccomp(),
        "no other security option": len(options) == 2,
        "own pid namespace": not host.get("PidMode"),
        "own uts namespace": not host.get("UTSMode"),
        "own ipc namespace": host.get("IpcMode") == "private",
        "own cgroup namespace": host.get("CgroupnsMode") == "private",
        "user namespace never the host's": host.get("UsernsMode") != "host",
        f"PidsLimit {PIDS_MAX}": host.get("PidsLimit") == PIDS_MAX,
        "Memory is set": (host.get("Memory") or 0) > 0,
        "MemorySwap equals Memory": host.get("MemorySwap") == host.get("Memory"),
        "OomKillDisable not set": not host.get("OomKillDisable"),
        "CPU is limited": (host.get("NanoCpus") or 0) > 0,
        "ulimits nofile, fsize, core": (
            set(ulimits) == {"nofile", "fsize", "core"}
            and ulimits["core"] == (0, 0)
            and ulimits["nofile"][1] <= NOFILE_MAX
            and 0 < ulimits["fsize"][1] <= 1024 * MIB
        ),
        "LogConfig none": (host.get("LogConfig") or {}).get("Type") == "none",
        "Init in fast mode alone": bool(host.get("Init")) is fast,
        "RestartPolicy no": (host.get("RestartPolicy") or {}).get("Name") in ("no", ""),
        "no binds, mounts or volumes": not (
            host.get("Binds") or host.get("Mounts") or host.get("VolumesFrom") or inspected.get("Mounts") or config.get("Volumes")
        ),
        "no devices": not (host.get("Devices") or host.get("DeviceRequests") or host.get("DeviceCgroupRules")),
        "no published ports": not (host.get("PortBindings") or host.get("PublishAllPorts")),
        "no links or extra hosts": not (host.get("Links") or host.get("ExtraHosts")),
        "no extra groups": not host.get("GroupAdd"),
        "no kernel settings": not host.get("Sysctls"),
        "no cgroup parent": not host.get("CgroupParent"),
        "Dns is dead": host.get("Dns") == [DEAD_DNS],
        "paths masked": set(MASKED) <= set(host.get("MaskedPaths") or []),
        "paths read-only": set(READ_ONLY) <= set(host.get("ReadonlyPaths") or []),
        "labels": all(labels.get(label) for label in LABELS),
        "own uid": user == f"{labels.get(LABEL_UID)}:{labels.get(LABEL_UID)}" and not user.startswith("0:"),
        "our command": tuple(command[:-1]) == SUPERVISOR and (fast or command[-1:] == ["stdio"]),
        "no health check": (config.get("Healthcheck") or {}).get("Test") in (None, ["NONE"]),
        "no terminal": not config.get("Tty"),
        "engine's runtime is runc or runsc": host.get("Runtime") in RUNTIMES,
    }
    wrong = [name for name, holds in checks.items() if not holds]
    return wrong + _tmpfs_deviations(host.get("Tmpfs") or {})


def _tmpfs_deviations(mounts: Mapping[str, str]) -> list[str]:
    wrong = list[str]()
    if set(mounts) != {"/tmp", "/dev/shm", "/output", "/code"}:
        wrong.append(f"writable folders are {sorted(mounts)}")
    for path, text in mounts.items():
        options = {name: value for name, _, value in (part.partition("=") for part in text.split(","))}
        wanted = {"rw", "nosuid", "nodev", "size", "nr_inodes", "mode", "exec" if path == "/code" else "noexec"}
        if not wanted <= set(options):
            wrong.append(f"{path} lacks {sorted(wanted - set(options))}")
        if path == "/tmp" and options.get("mode") != "1777":
            wrong.append("/tmp is not mode 1777")
    return wrong


def _seccomp_of(options: list[str]) -> str:
    """The filter the engine was given, in the same form as ours."""
    for option in options:
        kind, _, text = option.replace("seccomp:", "seccomp=", 1).partition("=")
        if kind == "seccomp" and text.startswith("{"):
            return json.dumps(json.loads(text), separators=(",", ":"), sort_keys=True)
    return ""


def inside_deviations(status: str) -> list[str]:
    """The same from inside: the text of `/proc/self/status` of any process in the container."""
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    checks = {
        **{
            f"{name} is 0": int(fields.get(name, ["1"])[0], 16) == 0
            for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")
        },
        "NoNewPrivs is 1": fields.get("NoNewPrivs") == ["1"],
        "Seccomp is 2": fields.get("Seccomp") == ["2"],
        "no uid is 0": len(fields.get("Uid", [])) == 4 and "0" not in fields["Uid"],
        "no gid is 0": len(fields.get("Gid", [])) == 4 and "0" not in fields["Gid"],
        "no other group": not set(fields.get("Groups", [])) - set(fields.get("Gid", [])),
    }
    return [name for name, holds in checks.items() if not holds]


def image_deviations(image: Mapping[str, Any]) -> list[str]:
    """What an image asks for that the profile does not override: refused before any container is made of it."""
    config: Mapping[str, Any] = image.get("Config") or {}
    wrong = [f"it declares a volume at {path}" for path in config.get("Volumes") or {}]
    wrong += [f"it exposes {port}" for port in config.get("ExposedPorts") or {}]
    wrong += ["it runs steps when built upon"] if config.get("OnBuild") else []
    return wrong
