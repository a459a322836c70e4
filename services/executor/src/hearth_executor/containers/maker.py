"""Makes a booted sandbox of a shelf, gives it its limits, and destroys it: everything that asks the engine."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiodocker

from hearth_contracts.enums import Reason
from hearth_executor.containers import cgroup, profile
from hearth_executor.containers.container import Container, LinkMode
from hearth_executor.containers.engine import Engine
from hearth_executor.containers.ports import Boot, Sandbox
from hearth_executor.containers.uids import Uids
from hearth_executor.domain.limits import Limits, at_boot, folders
from hearth_executor.domain.pool import Shelf
from hearth_executor.errors import BackendUnavailable, SandboxError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Booted:
    """A sandbox that holds no code yet."""

    name: str
    shelf: Shelf
    sandbox: Sandbox
    phases: Mapping[str, float]
    """Milliseconds: create, start, boot."""


class Maker:
    """Names of everything it made and has not seen removed are in `known`, from before the engine hears of them."""

    def __init__(
        self,
        *,
        engine: Engine,
        owner: profile.Owner,
        images: Mapping[str, str],
        boot: Boot,
        uids: Uids,
        mode: LinkMode,
        oci_runtime: str = "runc",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._images = images
        self._boot = boot
        self._uids = uids
        self.mode: LinkMode = mode
        """May change before the first container is made, when the fast link proves impossible."""
        self._oci_runtime = oci_runtime
        self._now = now
        self._made = 0
        self._writes_limits = True
        self._checked = set[str]()
        self.known = set[str]()

    async def make(self, shelf: Shelf) -> Booted:
        """Create, start, connect, shake hands. Raises `SandboxError` or `BackendUnavailable`, leaving nothing behind but
        what the reaper finds."""
        began = self._now()
        image = await self._image(shelf.runtime)
        self._made += 1
        name = f"hearth-{self._owner.platform}-{self._owner.executor}-{self._owner.boot}-{self._made}"
        uid = self._uids.take()
        self.known.add(name)
        container: Container | None = None
        try:
            config = profile.create_config(
                image=image,
                owner=self._owner,
                runtime=shelf.runtime,
                class_mb=shelf.class_mb,
                uid=uid,
                mode=self.mode,
                socket_name=name,
                limits=at_boot(shelf.class_mb),
                folders=folders(shelf.class_mb),
                oci_runtime=self._oci_runtime,
            )
            identity = await self._engine.create(config, name=name)
            created = self._now()
            container = await self._start(identity, name=name, uid=uid, shelf=shelf)
            started = self._now()
            sandbox = await self._boot(container)
            booted = self._now()
        except BaseException:
            if container is not None:
                container.kill()
                container.close()
            await self._remove(name, uid)
            raise
        phases = {"create": created - began, "start": started - created, "boot": booted - started}
        return Booted(name, shelf, sandbox, {phase: seconds * 1000 for phase, seconds in phases.items()})

    async def limit(self, sandbox: Sandbox, limits: Limits) -> None:
        """By the kernel's files where we may write them, else through the engine."""
        container = sandbox.container
        if self._writes_limits and container.cgroup is not None:
            if container.cgroup.set_limits(limits):
                return
            if _uses_more(container, limits):
                raise SandboxError("memory ran out while the code was imported", reason=Reason.OOM)
            if sandbox.usable:
                self._writes_limits = False
                _log.warning("limits cannot be written to the kernel's files from here; they go through the engine, slower")
        await self._engine.update(container.id, memory_bytes=limits.memory_bytes, cpus=limits.cpus, pids=limits.pids)

    async def destroy(self, booted: Booted) -> None:
        """Kill at once, then tidy up. Never raises: what the engine will not remove now, the reaper removes later."""
        container = booted.sandbox.container
        container.kill()
        await booted.sandbox.close()
        container.close()
        await self._remove(booted.name, container.uid)

    async def _image(self, runtime: str) -> str:
        reference = self._images.get(runtime)
        if reference is None:
            raise SandboxError(f"this executor has no image for the runtime {runtime}")
        if reference not in self._checked:
            if wrong := profile.image_deviations(await self._engine.image(reference)):
                raise SandboxError(f"the image {reference} is refused: {', '.join(wrong)}")
            self._checked.add(reference)
        return reference

    async def _start(self, identity: str, *, name: str, uid: int, shelf: Shelf) -> Container:
        attached = await self._engine.attach(identity) if self.mode == "stdio" else None
        pidfd = -1
        try:
            await self._engine.start(identity)
            pid = int((await self._engine.inspect(identity))["State"]["Pid"])
            pidfd = _hold(pid, identity)
            return Container(
                id=identity,
                name=name,
                pid=pid,
                pidfd=pidfd,
                uid=uid,
                mode=self.mode,
                socket_name=name,
                runtime=shelf.runtime,
                class_mb=shelf.class_mb,
                cgroup=cgroup.locate(pid) if pidfd >= 0 else None,
                attached=attached,
            )
        except BaseException:
            if attached is not None:
                attached.writer.close()
            if pidfd >= 0:
                os.close(pidfd)
            raise

    async def _remove(self, name: str, uid: int) -> None:
        try:
            await self._engine.remove(name)
        except (BackendUnavailable, aiodocker.DockerError) as error:
            self.known.discard(name)  # from here on it is the reaper's, and its uid stays taken
            _log.warning("container %s is left to the reaper: %s", name, error)
            return
        except BaseException:
            self.known.discard(name)
            raise
        self.known.discard(name)
        self._uids.give_back(uid)


def _uses_more(container: Container, limits: Limits) -> bool:
    """Version 1 refuses a limit below what is in use."""
    try:
        return container.cgroup is not None and container.cgroup.read().memory_bytes > limits.memory_bytes * 0.99
    except OSError:
        return False


def _hold(pid: int, container: str) -> int:
    """A pidfd of a container's first process; -1 when that process is not to be seen from here. A number alone could
    come to mean another process, so the kernel is asked whose it is after it is held."""
    if pid <= 0:
        return -1
    pidfd = -1
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
    if pidfd >= 0 and not cgroup.names_container(pid, container):
        os.close(pidfd)
        return -1
    return pidfd
