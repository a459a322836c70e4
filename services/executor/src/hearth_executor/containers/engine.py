"""The container engine, thinly: every question has a limit of time, and a hung engine is not asked again until a probe
says that it lives.

Never used here, and never to be: the archive API (`docker cp`), exec, stats, and logs.
"""

import asyncio
import json
import os
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiodocker
import aiohttp

from hearth_executor.containers.container import Attached
from hearth_executor.domain import breaker, engine_versions
from hearth_executor.errors import EngineForbidden, EngineMissing, EngineStopped, ImageMissing, SandboxError

T = TypeVar("T")

DEFAULT_SOCKET = "/var/run/docker.sock"

#: Seconds until a call counts as unanswered. Creating and starting take 0.1-0.5 s on an idle machine, several on a loaded one.
ASK_S = 5.0
CHANGE_S = 20.0

#: A running engine answers a ping within milliseconds.
PING_S = 3.0

#: Frames of the attached stream are read in pieces of at most this; the reader pauses the engine beyond it.
ATTACH_BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself, for the status and for decisions."""

    name: str
    version: str
    api_version: str
    runc_version: str
    oci_runtimes: tuple[str, ...]
    cgroup_version: int
    cgroup_driver: str
    rootless: bool
    user_namespaces: bool
    """Ids inside are mapped into a range of the engine's own: only 65536 of them exist."""
    swap_limited: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """A container as the engine lists it."""

    id: str
    name: str
    state: str
    labels: Mapping[str, str]
    created_at: float


def check_socket(path: str = DEFAULT_SOCKET, *, which: Callable[[str], str | None] = shutil.which) -> None:
    """Tell apart, without asking it, the three ways in which an engine is not there. Raises a `BackendUnavailable`."""
    dockerd = which("dockerd") or which("podman")
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        is_socket = False
    except PermissionError:
        raise _forbidden(path) from None
    if not is_socket:
        raise (_stopped(path) if dockerd else _missing())
    if not os.access(path, os.R_OK | os.W_OK):
        raise _forbidden(path)


def _missing() -> EngineMissing:
    return EngineMissing("no container engine is installed", fix="./hearth doctor --fix")


def _stopped(path: str) -> EngineStopped:
    fix = "systemctl start docker" if Path("/run/systemd/system").exists() else "./hearth doctor --fix"
    return EngineStopped(f"the container engine is installed but does not answer on {path}", fix=fix)


def _forbidden(path: str) -> EngineForbidden:
    return EngineForbidden(
        f"this user may not use the container engine ({path})", fix='sudo usermod -aG docker "$USER" && newgrp docker'
    )


class Engine:
    """One engine, over its API. An async context manager; `info` is filled on entering, which raises a
    `BackendUnavailable` that says what is wrong when there is no engine to be had."""

    info: EngineInfo

    def __init__(self, *, url: str = "", oci_runtime: str = "runc", now: Callable[[], float] = time.monotonic) -> None:
        self._url = url or os.environ.get("DOCKER_HOST", "") or f"unix://{DEFAULT_SOCKET}"
        self._oci_runtime = oci_runtime
        self._now = now
        self._breaker = breaker.Breaker()

    @property
    def socket_path(self) -> str | None:
        return self._url.removeprefix("unix://") if self._url.startswith("unix://") else None

    @property
    def answering(self) -> bool:
        """False while the engine is held to be hung."""
        return not self._breaker.is_open

    async def __aenter__(self) -> Self:
        if self.socket_path is not None:
            check_socket(self.socket_path)
        self._docker = aiodocker.Docker(url=self._url, timeout=aiohttp.ClientTimeout(total=None))
        try:
            self.info = await self._ask(self._info, PING_S)
        except BaseException:
            await self._docker.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._docker.close()

    async def _info(self) -> EngineInfo:
        version: dict[str, Any] = await self._json("version")
        info: dict[str, Any] = await self._json("info")
        parts = {part["Name"].lower(): part.get("Version", "") for part in version.get("Components") or []}
        security = " ".join(info.get("SecurityOptions") or [])
        runc = parts.get("runc", "")
        return EngineInfo(
            name="podman" if "podman engine" in parts else "docker",
            version=version.get("Version", ""),
            api_version=version.get("ApiVersion", ""),
            runc_version=runc,
            oci_runtimes=tuple(sorted(info.get("Runtimes") or {})),
            cgroup_version=int(info.get("CgroupVersion") or 1),
            cgroup_driver=info.get("CgroupDriver", ""),
            rootless="name=rootless" in security,
            user_namespaces="name=userns" in security or "name=rootless" in security,
            swap_limited=bool(info.get("SwapLimit")),
            warnings=tuple(engine_versions.warnings(engine=version.get("Version", ""), runc=runc, oci_runtime=self._oci_runtime)),
        )

    async def ping(self) -> None:
        await self._ask(lambda: self._text("_ping"), PING_S)

    async def image(self, reference: str) -> dict[str, Any]:
        """Inspect an image. Raises `ImageMissing`."""
        try:
            return await self._ask(lambda: self._docker.images.inspect(reference), ASK_S)
        except aiodocker.DockerError as error:
            if error.status == 404:
                raise ImageMissing(reference) from None
            raise

    async def newest_image(self, label: str) -> str | None:
        """The name of the image made last of those that bear a label."""
        filters = json.dumps({"label": [label]})
        found: list[dict[str, Any]] = await self._ask(lambda: self._json("images/json", params={"filters": filters}), ASK_S)
        named = [(int(image.get("Created") or 0), name) for image in found for name in (image.get("RepoTags") or [])[:1]]
        return max(named)[1] if named else None

    async def create(self, config: Mapping[str, Any], *, name: str) -> str:
        """Make a container; its id. Raises `ImageMissing` or `SandboxError`."""

        async def create() -> str:
            answer = await self._json("containers/create", method="POST", body=config, params={"name": name})
            return str(answer["Id"])

        try:
            return await self._ask(create, CHANGE_S)
        except aiodocker.DockerError as error:
            if error.status == 404 and "image" in error.message.lower():
                raise ImageMissing(str(config["Image"])) from None
            raise SandboxError(f"the engine would not make a container: {error.message}") from None

    async def start(self, container: str) -> None:
        try:
            await self._ask(lambda: self._post(f"containers/{quote(container)}/start"), CHANGE_S)
        except aiodocker.DockerError as error:
            raise SandboxError(f"the engine would not start a container: {error.message}") from None

    async def inspect(self, container: str) -> dict[str, Any]:
        return await self._ask(lambda: self._json(f"containers/{quote(container)}/json"), ASK_S)

    async def update(self, container: str, *, memory_bytes: int, cpus: float, pids: int) -> None:
        """Change limits through the engine, where the kernel's files may not be written from here."""
        body = {"Memory": memory_bytes, "MemorySwap": memory_bytes, "NanoCpus": int(cpus * 1e9), "PidsLimit": pids}
        try:
            await self._ask(lambda: self._post(f"containers/{quote(container)}/update", body), CHANGE_S)
        except aiodocker.DockerError as error:
            raise SandboxError(f"the engine would not change a container's limits: {error.message}") from None

    async def kill(self, container: str) -> None:
        """SIGKILL; already dead or gone is fine."""
        await self._tolerant(lambda: self._post(f"containers/{quote(container)}/kill", signal="KILL"), CHANGE_S)

    async def remove(self, container: str) -> None:
        """Kill and remove; already gone, or going, is fine."""
        path, params = f"containers/{quote(container)}", {"force": "true", "v": "true"}

        async def remove() -> None:
            await self._text(path, method="DELETE", params=params)

        await self._tolerant(remove, CHANGE_S)

    async def list(self, labels: Mapping[str, str]) -> "list[Listed]":
        """Every container, dead ones too, that bears these labels; an empty value stands for any."""
        filters = json.dumps({"label": [f"{key}={value}" if value else key for key, value in labels.items()]})
        found: list[dict[str, Any]] = await self._ask(
            lambda: self._json("containers/json", params={"all": "true", "filters": filters}), ASK_S
        )
        return [
            Listed(
                id=entry["Id"],
                name=(entry.get("Names") or [""])[0].removeprefix("/"),
                state=entry.get("State", ""),
                labels=entry.get("Labels") or {},
                created_at=float(entry.get("Created") or 0),
            )
            for entry in found
        ]

    async def attach(self, container: str) -> Attached:
        """Its stdin, stdout and stderr as one raw stream. Attach before the start, so that nothing is missed."""
        return await self._ask(lambda: self._attach(container), ASK_S)

    async def _attach(self, container: str) -> Attached:
        path = self.socket_path
        if path is None:
            raise SandboxError("streams are attached over the engine's unix socket only; set DOCKER_HOST to one")
        reader, writer = await asyncio.open_unix_connection(path, limit=ATTACH_BUFFER_BYTES)
        writer.write(
            f"POST /containers/{quote(container)}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
            "Host: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode()
        )
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError) as error:
            writer.close()
            raise SandboxError("the engine closed the stream while it was being attached") from error
        words = head.split(b" ", 2)
        if len(words) < 2 or words[1] not in (b"101", b"200"):
            writer.close()
            raise SandboxError(f"the engine would not attach a container's streams: {head[:200]!r}")
        return Attached(reader=reader, writer=writer)

    async def _tolerant(self, call: Callable[[], Awaitable[None]], limit_s: float) -> None:
        try:
            await self._ask(call, limit_s)
        except aiodocker.DockerError as error:
            if error.status not in (404, 409):  # gone; not running, or being removed already
                raise

    async def _ask(self, call: Callable[[], Awaitable[T]], limit_s: float) -> T:
        """One question, unless the engine is held to be hung."""
        admitted, self._breaker = breaker.admit(self._breaker, self._now())
        if not admitted:
            raise self._hung()
        try:
            if self._breaker.is_open:  # this call is the probe: first see whether anyone answers, at little cost
                async with asyncio.timeout(PING_S):
                    await self._text("_ping")
            async with asyncio.timeout(limit_s):
                result = await call()
        except TimeoutError:
            self._breaker = breaker.failed(self._breaker, self._now())
            raise self._hung() from None
        except (aiohttp.ClientError, OSError) as error:
            self._breaker = breaker.failed(self._breaker, self._now())
            raise _stopped(self._url) from error
        except aiodocker.DockerError as error:
            if error.status == 900:  # aiodocker's own number for: no connection
                self._breaker = breaker.failed(self._breaker, self._now())
                raise _stopped(self._url) from error
            self._breaker = breaker.succeeded(self._breaker)
            raise
        except BaseException:
            self._breaker = breaker.abandoned(self._breaker)
            raise
        self._breaker = breaker.succeeded(self._breaker)
        return result

    def _hung(self) -> EngineStopped:
        wait_s = breaker.wait_s(self._breaker, self._now())
        return EngineStopped("the container engine hangs: it does not answer", retry_after_s=max(wait_s, 1.0))

    async def _text(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        """The library's own methods leave out what we need (update, ping) or hide errors; its one request is enough."""
        data = None if body is None else json.dumps(body)
        query = self._docker._query(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            path, method=method, data=data, params=dict(params or {}), versioned_api=False
        )
        async with query as response:
            return await response.text()

    async def _json(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Any:
        return json.loads(await self._text(path, method=method, body=body, params=params))

    async def _post(self, path: str, body: Mapping[str, Any] | None = None, **params: str) -> None:
        await self._text(path, method="POST", body=body, params=params)
