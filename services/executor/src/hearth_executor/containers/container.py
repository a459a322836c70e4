"""A started container, as the links, the sandbox and the pool see it.

The engine makes these; nothing here talks to the engine. The container runs
`/usr/bin/python3 -I -S /opt/hearth/supervisor.py MODE`, MODE being `fast:<abstract socket name>` or `stdio`.
"""

import asyncio
import os
import signal
from dataclasses import dataclass
from typing import Literal

from hearth_executor.containers import cgroup

LinkMode = Literal["fast", "stdio"]

SUPERVISOR = ("/usr/bin/python3", "-I", "-S", "/opt/hearth/supervisor.py")


@dataclass(frozen=True, slots=True)
class Attached:
    """The container's stdin and stdout, as the engine hands them over (stdio mode; attached before the start).

    What is written goes to stdin as it is. What is read is the engine's multiplexed stream: an 8-byte header (stream
    number 1 or 2, three zero bytes, the size as a big-endian u32), then that many bytes.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class Container:
    """One running container. `pid` is its first process as this process sees it (docker-init in fast mode, the
    supervisor in stdio mode), held by `pidfd` so that it can never come to mean another."""

    id: str
    name: str
    pid: int
    pidfd: int
    """-1 where the process cannot be seen from here (another pid namespace, another machine)."""
    uid: int
    mode: LinkMode
    socket_name: str
    """The abstract socket's name without its leading NUL, fast mode only: what the supervisor was told to connect to."""
    runtime: str
    class_mb: int
    cgroup: "cgroup.Group | None"
    """None where the kernel's files cannot be read from here."""
    attached: Attached | None = None

    def kill(self) -> bool:
        """SIGKILL the first process, and with it every process of the container, past the engine. False when that is
        not possible from here: ask the engine instead."""
        if self.pidfd < 0:
            return False
        try:
            if self.cgroup is not None:
                self.cgroup.thaw()
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of the descriptors. The container itself is the engine's to remove."""
        if self.attached is not None:
            self.attached.writer.close()
        if self.cgroup is not None:
            self.cgroup.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
