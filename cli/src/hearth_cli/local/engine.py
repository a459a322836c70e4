"""The container engine of this machine: whether there is one, how to get one, and how to start one where no init system
does. An engine that already runs is never touched."""

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hearth_cli.errors import CommandError
from hearth_cli.local.engine_api import EngineApi, EngineError, socket_path

Progress = Callable[[str], None]
Kind = Literal["ready", "missing", "stopped", "forbidden", "elsewhere"]

#: Seconds an engine may take to answer after its start; containerd comes up first.
START_S: Final = 60.0

#: An engine that we started by hand: its process id, so that `down --engine` or a person can end it, and its log.
PID_FILE: Final = Path("/run/hearth-dockerd.pid")
LOG_FILE: Final = Path("/var/log/hearth-dockerd.log")

_SYSTEMD: Final = Path("/run/systemd/system")

#: Without networks the engine needs neither bridge nor firewall rules, which many small kernels and containers lack.
_NO_NETWORK: Final = ("--bridge=none", "--iptables=false", "--ip6tables=false")

#: What containers need of a kernel's control groups. Each is mounted where nothing has been.
_CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")


class EngineNotReady(CommandError):
    """There is no container engine to be had."""

    code = "E_ENGINE_NOT_READY"


@dataclass(frozen=True, slots=True)
class EngineState:
    """One of five: ready; missing (not installed), stopped (installed, does not answer), forbidden (not for this user),
    elsewhere (`DOCKER_HOST` names one that is not to be had, and that is not ours to start).
    `fix` is the one command that mends it, empty when ready."""

    kind: Kind
    message: str
    fix: str = ""
    version: str = ""
    socket: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return self.kind == "ready"


def inspect_engine(path: str = "") -> EngineState:
    """How it stands, without changing anything. Takes milliseconds; up to 10 s when an engine hangs."""
    told = "" if path else os.environ.get("DOCKER_HOST", "")
    path = path or socket_path()
    if told and not (told.startswith("unix://") and _answers(path)):
        says = f"DOCKER_HOST names {told}, where no engine answers on a unix socket"
        return EngineState("elsewhere", says, "unset DOCKER_HOST", socket=path)
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        is_socket = False
    if is_socket:
        try:
            api = EngineApi(path)
            version, info = api.version(), api.info()
        except PermissionError:
            return EngineState("forbidden", f"this user may not use the container engine ({path})", _forbidden_fix(), socket=path)
        except TimeoutError:
            return EngineState("stopped", "the container engine hangs: it does not answer", _restart_fix(), socket=path)
        except (OSError, EngineError):
            return EngineState("stopped", f"the container engine does not answer on {path}", _start_fix(), socket=path)
        return EngineState(
            "ready", _describe(version, info), version=str(version.get("Version", "")), socket=path, notes=_notes(version, info)
        )
    if shutil.which("dockerd"):
        return EngineState("stopped", "the container engine is installed but does not run", _start_fix(), socket=path)
    return EngineState("missing", "no container engine is installed", _install_fix(), socket=path)


def _answers(path: str) -> bool:
    try:
        EngineApi(path).version()
    except PermissionError:
        return True  # it is there; `forbidden` says more
    except (OSError, EngineError):
        return False
    return True


def can_install() -> bool:
    """Whether `install_engine` works here: root, on a system with Debian's package manager."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_engine(progress: Progress, path: str = "") -> EngineState:
    """Bring the engine to `ready`: install it from the distribution's packages, start it. Raises `EngineNotReady`."""
    state = inspect_engine(path)
    if state.ready:
        return state
    if state.kind in {"forbidden", "elsewhere"} or os.geteuid() != 0:
        raise EngineNotReady(state.message, fix=state.fix)
    if state.kind == "missing":
        if not can_install():
            raise EngineNotReady(state.message, fix=state.fix)
        install_packages(["docker.io"], progress, "installing the container engine")
    return start_engine(progress, path)


def install_packages(packages: list[str], progress: Progress, what: str) -> None:
    """Install Debian packages, with nothing recommended beside them. Whatever the packages want started is left alone:
    what runs on this machine is decided here, not by an installation."""
    progress(what)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    missing = [package for package in packages if not _is_installed(package)]
    if not missing:
        return

    def apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["apt-get", *arguments]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False)

    apt_get("update", "-q")  # an old list may still do
    done = apt_get("install", "-y", "-q", "--no-install-recommends", *missing)
    if done.returncode:
        raise EngineNotReady(
            f"{', '.join(missing)} could not be installed",
            fix=f"apt-get update && apt-get install -y {' '.join(missing)}",
            detail=(done.stdout + done.stderr)[-2000:],
        )


def start_engine(progress: Progress, path: str = "") -> EngineState:
    """Start the installed engine: by systemd where that runs, else by hand."""
    if (state := inspect_engine(path)).ready:
        return state
    if state.kind == "elsewhere":
        raise EngineNotReady(state.message, fix=state.fix)
    progress("starting the container engine")
    if _SYSTEMD.exists():
        subprocess.run(["systemctl", "start", "docker"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return _wait_ready(path, None) or _give_up(path)
    _prepare_machine()
    process = _dockerd(path, _NO_NETWORK)
    if (state := _wait_ready(path, process)) is not None:
        return state
    _end(process)
    return _give_up(path)


def stop_started_engine() -> bool:
    """End the engine if it is one that we started by hand; True when it was."""
    try:
        pid = int(PID_FILE.read_text())
        if b"dockerd" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return False
    deadline = time.monotonic() + START_S
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    PID_FILE.unlink(missing_ok=True)
    return True


def remove_containers(platform: str, path: str = "") -> int:
    """Remove every container of one platform, whatever executor made it; how many there were. No other's."""
    api = EngineApi(path)
    found = api.containers([f"hearth.platform={platform}"])
    for container in found:
        api.remove_container(container["Id"])
    return len(found)


def _dockerd(path: str, options: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """The daemon, in a session of its own, so that it outlives this command."""
    LOG_FILE.parent.mkdir(parents=True, exist_ok=True)
    command = ["dockerd", *options]
    if path:
        command += ["--host", f"unix://{path}"]
    if _overlay_below():
        command += ["--storage-driver=vfs"]
    with LOG_FILE.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")
    with suppress(OSError):
        PID_FILE.write_text(str(process.pid))
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    PID_FILE.unlink(missing_ok=True)


def _wait_ready(path: str, process: subprocess.Popen[bytes] | None) -> EngineState | None:
    """None when the daemon gave up, or did not come up in time."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        state = inspect_engine(path)
        if state.ready:
            return state
        if process is not None and process.poll() is not None:
            return None
        time.sleep(0.1)
    return None


def _give_up(path: str) -> EngineState:
    if (state := inspect_engine(path)).ready:
        return state
    with suppress(OSError):
        lines = LOG_FILE.read_text(errors="replace").splitlines()[-5:]
        raise EngineNotReady("the container engine did not start", fix=f"tail -50 {LOG_FILE}", detail="\n".join(lines))
    raise EngineNotReady("the container engine did not start", fix="journalctl -u docker")


def _prepare_machine() -> None:
    """What an init system would have done and the engine counts on: control groups mounted, a folder for sockets."""
    Path("/run").mkdir(exist_ok=True)
    if not Path("/var/run").exists():
        Path("/var/run").symlink_to("/run")
    top = Path("/sys/fs/cgroup")
    if not top.is_dir() or (top / "cgroup.controllers").exists():
        return
    if not os.path.ismount(top):
        _mount("-t", "tmpfs", "-o", "mode=755,nosuid,nodev,noexec", "cgroup", str(top))
    offered = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines() if not line.startswith("#")}
    for controller in sorted(offered.intersection(_CONTROLLERS)):
        folder = top / controller
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            if not os.path.ismount(folder):
                _mount("-t", "cgroup", "-o", controller, "cgroup", str(folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _overlay_below() -> bool:
    """Whether the engine's folder would itself lie on an overlay, upon which another cannot be mounted."""
    folder = Path("/var/lib/docker")
    while not folder.exists():
        folder = folder.parent
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False).stdout.strip()
    return kind in ("overlayfs", "overlay")


def _runs(pid: int) -> bool:
    """A process that has ended and is not yet collected does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _is_installed(package: str) -> bool:
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True, check=False)
    return "install ok installed" in done.stdout


def _sudo() -> str:
    return "" if os.geteuid() == 0 else "sudo "


def _install_fix() -> str:
    if shutil.which("apt-get"):
        return "./hearth doctor --fix" if os.geteuid() == 0 else "sudo apt-get install -y docker.io"
    if shutil.which("dnf"):
        return f"{_sudo()}dnf install -y moby-engine && {_sudo()}systemctl start docker"
    return "brew install --cask docker && open -a Docker" if os.uname().sysname == "Darwin" else "install the Docker engine"


def _start_fix() -> str:
    if _SYSTEMD.exists():
        return f"{_sudo()}systemctl start docker"
    return "open -a Docker" if os.uname().sysname == "Darwin" else f"{_sudo()}./hearth doctor --fix"


def _restart_fix() -> str:
    return f"{_sudo()}systemctl restart docker" if _SYSTEMD.exists() else f"{_sudo()}kill $(pidof dockerd), then: {_start_fix()}"


def _forbidden_fix() -> str:
    return 'sudo usermod -aG docker "$USER" && newgrp docker'


def _describe(version: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    return (
        f"Docker engine {version.get('Version', '?')}, cgroup v{info.get('CgroupVersion') or 1}, "
        f"{info.get('Driver', '?')}, runtime {info.get('DefaultRuntime', '?')}"
    )


def _notes(version: Mapping[str, Any], info: Mapping[str, Any]) -> tuple[str, ...]:
    notes = list[str]()
    if not info.get("MemoryLimit", True):
        notes.append("this engine cannot limit memory: functions are not safe from each other here")
    if not info.get("PidsLimit", True):
        notes.append("this engine cannot limit processes: functions are not safe from each other here")
    if not info.get("SwapLimit", True):
        notes.append("this kernel does not account for swap: a function may swap beyond its memory (turn swap off)")
    if not any("seccomp" in option for option in info.get("SecurityOptions") or []):
        notes.append("this engine has no seccomp: containers will not start under Hearth's profile")
    security = " ".join(info.get("SecurityOptions") or [])
    if "userns" not in security and "rootless" not in security:
        notes.append("recommended for strangers' code: userns-remap or a rootless engine, and gVisor (runsc)")
    return tuple(notes)
