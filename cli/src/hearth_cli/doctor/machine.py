"""The machine itself: Python, the broker, disk, ports, control groups, and what the kernel permits."""

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from hearth_cli.doctor.findings import Finding
from hearth_cli.errors import BrokerUnfit
from hearth_cli.local import broker_binary, ports
from hearth_cli.local.data_dir import DataDir, is_locked

#: Images, records and the broker's work; below this a busy day fills the disk.
DISK_BYTES_WANTED: Final = 5_000_000_000
DISK_BYTES_NEEDED: Final = 500_000_000
_CAP_SYS_PTRACE: Final = 19
_CAP_SYS_ADMIN: Final = 21
_CGROUPS: Final = Path("/sys/fs/cgroup")


def python() -> Finding:
    """Always well: `./hearth` runs under no older one."""
    return Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))


def broker() -> Finding:
    try:
        binary = broker_binary.find()
    except BrokerUnfit as error:
        return Finding("broker", "bad", error.message, error.fix)
    return Finding("broker", "ok", f"nats-server {binary.version_text} ({binary.path})")


def port(data: DataDir, number: int) -> Finding:
    if is_locked(data.lock):
        return Finding("port", "ok", f"a platform runs in {data.root}")
    if not ports.is_free(number):
        return Finding("port", "off", f"{number} is used by another program", f"./hearth up --port {number + 1}")
    return Finding("port", "ok", f"{number} is free")


def disk(data: DataDir) -> Finding:
    folder = data.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    says = f"{free / 1e9:.1f} GB free for {data.root}"
    if free >= DISK_BYTES_WANTED:
        return Finding("disk", "ok", says)
    state = "off" if free >= DISK_BYTES_NEEDED else "bad"
    return Finding("disk", state, f"{says}; {DISK_BYTES_WANTED / 1e9:.0f} GB are wanted", "./hearth up --data /a/larger/disk")


def control_groups() -> Finding:
    """Limits of a sandbox are told to the kernel through these; what a run cost is read from them."""
    if (_CGROUPS / "cgroup.controllers").exists():
        present = (_CGROUPS / "cgroup.controllers").read_text().split()
        version = "v2"
    else:
        present = [name for name in ("cpu", "memory", "pids") if (_CGROUPS / name).is_dir()]
        version = "v1"
    missing = sorted({"cpu", "memory", "pids"}.difference(present))
    if missing:
        return Finding("cgroups", "off", f"{version} without {', '.join(missing)}: no limits there", "./hearth doctor --fix")
    writable = os.access(_CGROUPS, os.W_OK)
    return Finding(
        "cgroups", "ok", f"{version}; limits are set {'at each call' if writable else 'by class, when a sandbox is made'}"
    )


def fast_link() -> Finding:
    """The executor enters a container's network namespace for a moment: that needs two capabilities and pidfds."""
    if not hasattr(os, "pidfd_open"):
        return Finding("fast link", "off", "this system has no pidfds; calls take 0.2 ms longer")
    if _capable(_CAP_SYS_ADMIN) and _capable(_CAP_SYS_PTRACE):
        return Finding("fast link", "ok", "permitted")
    return Finding("fast link", "off", "not permitted to this user; calls take 0.2 ms longer", "sudo ./hearth up")


def _capable(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False
