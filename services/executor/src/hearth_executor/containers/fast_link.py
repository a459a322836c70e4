"""The fast link: an abstract unix socket inside the container's own network namespace.

Nobody outside that namespace can reach the socket, and inside it exactly one connection is ever accepted, before any
code of a function is there. The container is named by its pidfd, so that a recycled pid cannot lead us elsewhere.
"""

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Generator
from typing import TypeVar, cast

from hearth_executor.containers import cgroup
from hearth_executor.containers.container import Container
from hearth_executor.containers.link import Link
from hearth_executor.errors import LinkFailed

CLONE_NEWNET = 0x40000000

Result = TypeVar("Result")

_UCRED = struct.Struct("iII")
_libc = ctypes.CDLL(None, use_errno=True)


def permitted() -> str | None:
    """None when this process may enter network namespaces, else why not."""
    try:
        with _opened("/proc/self/ns/net") as namespace:
            _in_namespace(namespace, _nothing)
    except OSError as error:
        return f"entering a network namespace: {error.strerror}"
    return None


async def connect(container: Container, *, timeout_s: float) -> Link:
    """Listen inside the container, let its supervisor in, and nobody after it. Raises `LinkFailed`."""
    try:
        listener = _listen(container)
    except OSError as error:
        raise LinkFailed(f"the container's network namespace: {error.strerror or error}") from error
    loop = asyncio.get_running_loop()
    # A pidfd becomes readable when its process ends: nobody will come then, and there is no need to wait for it.
    gone = os.dup(container.pidfd)
    try:
        listener.setblocking(False)
        async with asyncio.timeout(timeout_s) as limit:
            loop.add_reader(gone, lambda: limit.reschedule(0))
            accepted, _ = await loop.sock_accept(listener)
    except TimeoutError:
        why = "it has ended" if not _alive(container.pidfd) else f"not within {timeout_s:.0f} s"
        raise LinkFailed(f"the supervisor did not come to the link: {why}") from None
    finally:
        loop.remove_reader(gone)
        os.close(gone)
        listener.close()
    try:
        _check_peer(accepted, container)
        protocol = _Protocol()
        await loop.connect_accepted_socket(lambda: protocol, accepted)
    except BaseException:
        accepted.close()
        raise
    return protocol.link


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.link = Link(keyed=False)
        self.data_received = self.link.feed  # one call less for every read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.link.wire = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.lose("the link was closed" if exc is None else f"the link broke: {exc}")


def _listen(container: Container) -> socket.socket:
    with _opened(f"/proc/{container.pid}/ns/net") as namespace:
        if not cgroup.names_container(container.pid, container.id):
            raise OSError(f"process {container.pid} is not in container {container.name}")
        if not _alive(container.pidfd):
            raise OSError("the container has ended")
        if os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/net")):
            raise OSError("the container shares our network")
        return _in_namespace(namespace, lambda: _bind(container.socket_name))


def _bind(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind("\0" + name)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _in_namespace(namespace: int, action: Callable[[], Result]) -> Result:
    """Run `action` in a network namespace, in a thread that is thrown away: none of ours ever stays in there."""
    done = list[Result]()
    failed = list[OSError]()

    def enter() -> None:
        try:
            if _libc.setns(namespace, CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            done.append(action())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="hearth-namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _nothing() -> None:
    pass


@contextlib.contextmanager
def _opened(path: str) -> Generator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _alive(pidfd: int) -> bool:
    """A pidfd becomes readable when its process ends."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return pidfd >= 0 and not poll.poll(0)


def _check_peer(accepted: socket.socket, container: Container) -> None:
    """Who connected is told by the kernel: a process of this container, under this container's uid."""
    pid, uid, _ = _UCRED.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid != container.uid or not cgroup.names_container(pid, container.id):
        raise LinkFailed(f"process {pid} of uid {uid} came to the link of container {container.name}")
