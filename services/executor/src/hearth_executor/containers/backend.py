"""The container backend: one engine, one maker, one pool, one reaper. Implements `ports.Backend`."""

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from hearth_contracts.functions import FunctionVersion
from hearth_executor.containers import cgroup, fast_link, profile, reaper, sandbox
from hearth_executor.containers.container import Container, LinkMode
from hearth_executor.containers.engine import Engine, EngineInfo
from hearth_executor.containers.maker import Maker
from hearth_executor.containers.pool import Code, Pool, PooledUnit
from hearth_executor.containers.ports import Boot, Sandbox
from hearth_executor.containers.uids import FIRST_UID_MAPPED, UidRange, Uids
from hearth_executor.domain.pool import Policy, Shelf
from hearth_executor.errors import BackendUnavailable, LinkFailed
from hearth_executor.ports import PoolReport, Unit

_log = logging.getLogger(__name__)

#: Part of the machine's memory that sandboxes may use when nothing is said: the broker, the services and the page cache
#: need the rest.
MEMORY_SHARE = 0.75

#: Handshakes that may fail over the fast link, before any succeeds, until the other link is tried.
FAST_FAILURES_MAX = 2

LinkChoice = Literal["auto", "fast", "stdio"]


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """What the backend needs to know. The service's `config.py` fills it from the environment."""

    platform: str
    executor: str
    boot: str
    link: LinkChoice = "auto"
    """`stdio` forbids the fast link; `fast` refuses to start without it."""
    engine_url: str = ""
    """Empty: `DOCKER_HOST`, else the usual socket."""
    oci_runtime: str = "runc"
    images: Mapping[str, str] = field(default_factory=dict[str, str])
    """Runtime -> image; the newest built one of a runtime that is not named."""
    runtimes: tuple[str, ...] = ("python",)
    memory_budget_mb: int = 0
    """All sandboxes' memory limits together; 0: three quarters of the machine's memory."""
    units_max: int = 500
    generic: Mapping[str, int] = field(default_factory=lambda: {"python/128": 4})
    """Booted sandboxes to keep per runtime and memory class when nothing is asked for."""
    generic_max: int = 32
    creates_at_once: int = 0
    """0: one per processor, at least two."""
    uids: UidRange = field(default_factory=UidRange)


class ContainerBackend:
    """An async context manager. Entering raises a `BackendUnavailable` that names what is missing and the command that
    mends it; leaving destroys every sandbox."""

    name = "container"

    def __init__(self, settings: ContainerSettings, *, boot: Boot = sandbox.boot) -> None:
        self._settings = settings
        self._boot_sandbox = boot
        self._owner = profile.Owner(settings.platform, settings.executor, settings.boot)
        self._fast_failures = 0
        self._link_proven = False
        self.link: LinkMode = "stdio"
        self.link_reason = ""
        """Why this link, for the status."""
        self._reading_us: float | None = None
        self.images = dict[str, str]()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            settings = self._settings
            self._engine = await stack.enter_async_context(Engine(url=settings.engine_url, oci_runtime=settings.oci_runtime))
            info = self._engine.info
            for warning in info.warnings:
                _log.warning("%s", warning)
            if settings.oci_runtime not in info.oci_runtimes:
                known = ", ".join(info.oci_runtimes)
                raise BackendUnavailable(f"the engine has no runtime {settings.oci_runtime!r} (it has {known})")
            self.link, self.link_reason = choose_link(
                settings.link, info=info, oci_runtime=settings.oci_runtime, forbidden=fast_link.permitted()
            )
            self.images = await self._find_images()
            self._maker = Maker(
                engine=self._engine,
                owner=self._owner,
                images=self.images,
                boot=self._boot,
                uids=await self._uids(stack, info),
                mode=self.link,
                oci_runtime=settings.oci_runtime,
            )
            self._reaper = reaper.Reaper(engine=self._engine, owner=self._owner, known=lambda: self._maker.known)
            await self._reaper.sweep()
            self._pool = await stack.enter_async_context(Pool(maker=self._maker, policy=policy(settings)))
            sweeping = asyncio.create_task(self._sweep(), name="hearth-reaper")
            stack.push_async_callback(_end, sweeping)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # -- ports.Backend

    def take(self, version: FunctionVersion) -> PooledUnit | None:
        return self._pool.take(version)

    async def make(self, version: FunctionVersion, code: Code) -> PooledUnit:
        return await self._pool.make(version, code)

    def give_back(self, unit: Unit, *, reusable: bool) -> None:
        assert isinstance(unit, PooledUnit)
        self._pool.give_back(unit, reusable=reusable)

    def report(self) -> PoolReport:
        return self._pool.report()

    # -- beside calls

    def keep_warm(self, version: FunctionVersion, code: Code) -> None:
        """Hold the version's `min_warm` units ready from now on."""
        self._pool.keep_warm(version, code)

    def retire(self, key: str) -> None:
        """This version is no longer called: let its idle units go."""
        self._pool.retire(key)

    def assigned(self) -> Mapping[str, int]:
        """Living units per version, busy or idle."""
        return self._pool.assigned()

    def executor_died(self, name: str, boot: str) -> None:
        """An executor of this platform will not come back: if it ran on this engine, its containers are removed."""
        self._reaper.executor_died(name, boot)

    @property
    def answering(self) -> bool:
        """False while the engine hangs: no new sandboxes until it answers; warm ones still serve."""
        return self._engine.answering

    @property
    def memory_free_mb(self) -> int:
        return max(0, self._pool.memory_budget_mb - self._pool.used_mb)

    @property
    def notes(self) -> dict[str, str]:
        """For people, in capacity reports and the status."""
        info = self._engine.info
        notes = {
            "engine": f"{info.name} {info.version}, cgroup v{info.cgroup_version}" + ("" if self.answering else ", hangs"),
            "runtime": f"{self._settings.oci_runtime} {info.runc_version}"
            if self._settings.oci_runtime == "runc"
            else self._settings.oci_runtime,
            "link": f"{self.link}: {self.link_reason}",
        }
        if self._reading_us is not None:
            notes["cgroup_read_us"] = f"{self._reading_us:.1f}"
        if info.warnings:
            notes["warnings"] = "; ".join(info.warnings)
        missing = [runtime for runtime in self._settings.runtimes if runtime not in self.images]
        if missing:
            notes["images"] = f"no image for {', '.join(missing)}; make it with: ./hearth images build"
        return notes

    # -- inside

    async def _boot(self, container: Container) -> Sandbox:
        """Boot, and give the fast link up for good when it never once worked."""
        try:
            booted = await self._boot_sandbox(container)
        except LinkFailed as error:
            self._fast_failures += container.mode == "fast"
            hopeless = not self._link_proven and self._fast_failures >= FAST_FAILURES_MAX
            if self._settings.link == "auto" and self._maker.mode == "fast" and hopeless:
                self.link, self.link_reason = "stdio", f"the fast link failed: {error}"
                self._maker.mode = "stdio"
                _log.warning("functions are reached over the attached streams from now on: %s", self.link_reason)
            raise
        self._link_proven = True
        if self._reading_us is None and container.cgroup is not None:
            with suppress(OSError):  # it ended at once: the next one tells
                self._reading_us = cgroup.reading_us(container.cgroup)
        return booted

    async def _find_images(self) -> dict[str, str]:
        images = dict(self._settings.images)
        for runtime in self._settings.runtimes:
            if runtime not in images and (newest := await self._engine.newest_image(f"hearth.runtime={runtime}")):
                images[runtime] = newest
        return images

    async def _uids(self, stack: AsyncExitStack, info: EngineInfo) -> Uids:
        uids = self._settings.uids
        if info.user_namespaces and uids.first + uids.count > 65_536:
            uids = UidRange(FIRST_UID_MAPPED, min(uids.count, 40_000))
        seen = await self._engine.list({profile.LABEL_UID: ""})
        taken = {int(container.labels[profile.LABEL_UID]) for container in seen if container.labels[profile.LABEL_UID].isdigit()}
        pool = Uids(uids=uids, owner=f"{self._owner.platform}/{self._owner.executor}", avoid=taken)
        stack.callback(pool.close)
        return pool

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(reaper.EVERY_S)
            await self._reaper.sweep()


def choose_link(choice: LinkChoice, *, info: EngineInfo, oci_runtime: str, forbidden: str | None) -> tuple[LinkMode, str]:
    """The link and why. Raises `BackendUnavailable` when the fast one is demanded and not to be had."""
    if choice == "stdio":
        return "stdio", "the fast link is forbidden by setting"
    obstacle = forbidden
    if oci_runtime != "runc":
        obstacle = f"{oci_runtime} keeps networks of its own"
    elif info.rootless:
        obstacle = "the engine is rootless: its namespaces are not ours to enter"
    if obstacle is None:
        return "fast", "this process may enter its containers' network namespaces"
    if choice == "fast":
        raise BackendUnavailable(f"the fast link is demanded by setting, and not possible: {obstacle}")
    return "stdio", f"the fast link is not possible: {obstacle}"


def policy(settings: ContainerSettings) -> Policy:
    return Policy(
        memory_budget_mb=settings.memory_budget_mb or int(machine_memory_mb() * MEMORY_SHARE),
        units_max=settings.units_max,
        generic={parse_shelf(text): count for text, count in settings.generic.items()},
        generic_max=settings.generic_max,
        creates_at_once=settings.creates_at_once or max(2, os.cpu_count() or 2),
    )


def parse_shelf(text: str) -> Shelf:
    """`python/128`."""
    runtime, _, class_mb = text.partition("/")
    return Shelf(runtime, int(class_mb))


def machine_memory_mb(meminfo: Path = Path("/proc/meminfo")) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 1024


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
