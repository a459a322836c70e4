"""From an uploaded bundle to a version that can be called."""

import asyncio
import hashlib
import json
from dataclasses import dataclass
from typing import BinaryIO, Final

from hearth_contracts import functions, streams
from hearth_contracts.enums import BackendChoice, FunctionState
from hearth_contracts.functions import CodeRef, FunctionHead, FunctionSpec, FunctionVersion
from hearth_gateway import metrics
from hearth_gateway.errors import Conflict, FunctionNotFound
from hearth_gateway.functions import bundle
from hearth_gateway.functions.bundle import Bundle
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import WrongLastSequence
from hearth_kit.kv import Bucket
from hearth_kit.objects import Objects
from hearth_kit.registry import Registry

AREA: Final = "code"
_READ_BYTES: Final = 256 * 1024
#: Bundles that are checked at the same time: each takes a thread and a temporary file.
CHECKS_MAX: Final = 2
#: Older versions leave the list (and with it canaries and rollbacks); their calls in flight still find them.
VERSIONS_MAX: Final = 100
#: Deployments of one function that race: each loses at most to every other.
RACES_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class Upload:
    """A bundle in a temporary file."""

    file: BinaryIO
    size: int
    filename: str = ""


class Deployer:
    def __init__(self, *, bus: Bus, clock: Clock, registry: Registry, objects: Objects) -> None:
        self._bus = bus
        self._clock = clock
        self._registry = registry
        self._objects = objects
        self._heads: Bucket[FunctionHead] = Bucket(bus, streams.FUNCTIONS, FunctionHead)
        self._versions: Bucket[FunctionVersion] = Bucket(bus, streams.FUNCTIONS, FunctionVersion)
        self._checking = asyncio.Semaphore(CHECKS_MAX)

    async def deploy(self, *, tenant: str, spec: FunctionSpec, upload: Upload, by: str) -> tuple[FunctionVersion, bool]:
        """The version that the name stands for from here on, and whether it is a new one."""
        async with self._checking:
            found, code_sha256 = await asyncio.to_thread(_check, upload, spec)
        digest = _digest(spec, found, code_sha256)
        current = await self._current(tenant, spec.name)
        if current is not None and current.digest == digest:
            metrics.DEPLOYS.labels("unchanged").inc()
            return current, False
        code = await self._store(upload, found, code_sha256)
        version = await self._claim(tenant, spec, digest, code, by)
        await self._point(version)
        metrics.DEPLOYS.labels("new").inc()
        return version, True

    async def _current(self, tenant: str, function: str) -> FunctionVersion | None:
        fresh = await self._registry.fresh_head(tenant, function)
        if fresh is None or fresh[1].deleted:
            return None
        return await self._registry.version(tenant, function, fresh[1].current)

    async def _store(self, upload: Upload, found: Bundle, code_sha256: str) -> CodeRef:
        """The same code is stored once, whoever uploads it."""
        present = await self._objects.head(AREA, code_sha256)
        if present is None or present.size != upload.size:
            writer = self._objects.writer(AREA, code_sha256, bytes_max=upload.size)
            upload.file.seek(0)
            while chunk := upload.file.read(_READ_BYTES):
                await writer.write(chunk)
            await writer.finish()
        return CodeRef(object=code_sha256, kind=found.kind, filename=found.filename, size=upload.size, sha256=code_sha256)

    async def _claim(self, tenant: str, spec: FunctionSpec, digest: str, code: CodeRef, by: str) -> FunctionVersion:
        """The next free version number: whoever writes it first has it."""
        fresh = await self._registry.fresh_head(tenant, spec.name)
        number = max(fresh[1].versions, default=fresh[1].current) + 1 if fresh is not None else 1
        backend = "container" if spec.backend is BackendChoice.AUTO else spec.backend.value
        for _ in range(RACES_MAX):
            version = FunctionVersion(
                tenant=tenant, function=spec.name, version=number, digest=digest, state=FunctionState.READY, spec=spec, code=code,
                created_at=self._clock.now(), created_by=by, backend=backend,
            )  # fmt: skip
            try:
                await self._versions.create(functions.registry_key(tenant, spec.name, number), version)
            except WrongLastSequence:
                number += 1
                continue
            return version
        raise Conflict("too many deployments of this function at the same time")

    async def _point(self, version: FunctionVersion) -> None:
        """The head follows the highest version; of two deployments at once the later number stays."""
        key = functions.registry_key(version.tenant, version.function)
        for _ in range(RACES_MAX):
            fresh = await self._registry.fresh_head(version.tenant, version.function)
            now = self._clock.now()
            if fresh is None:
                revision, head = 0, FunctionHead(
                    tenant=version.tenant, function=version.function, current=version.version, versions=(version.version,),
                    updated_at=now,
                )  # fmt: skip
            else:
                revision, known = fresh
                numbers = tuple(sorted({*known.versions, version.version}))[-VERSIONS_MAX:]
                current = version.version if known.deleted else max(known.current, version.version)
                head = known.model_copy(update={"current": current, "versions": numbers, "deleted": False, "updated_at": now})
            try:
                await self._heads.update(key, head, revision=revision)
            except WrongLastSequence:
                continue
            await self._registry.fresh_head(version.tenant, version.function)
            return
        raise Conflict("too many deployments of this function at the same time")

    async def delete(self, tenant: str, function: str) -> None:
        """Its name stands for nothing from here on. Calls accepted before still run; versions stay for their records."""
        for _ in range(RACES_MAX):
            fresh = await self._registry.fresh_head(tenant, function)
            if fresh is None or fresh[1].deleted:
                raise FunctionNotFound(f"no function {function!r}")
            revision, head = fresh
            gone = head.model_copy(update={"deleted": True, "updated_at": self._clock.now()})
            try:
                await self._heads.update(functions.registry_key(tenant, function), gone, revision=revision)
            except WrongLastSequence:
                continue
            await self._registry.fresh_head(tenant, function)
            return
        raise Conflict


def _check(upload: Upload, spec: FunctionSpec) -> tuple[Bundle, str]:
    found = bundle.inspect(upload.file, upload.size, filename=upload.filename, spec_handler=spec.handler)
    upload.file.seek(0)
    digest = hashlib.sha256()
    while chunk := upload.file.read(_READ_BYTES):
        digest.update(chunk)
    return found, digest.hexdigest()


def _digest(spec: FunctionSpec, found: Bundle, code_sha256: str) -> str:
    """Names what runs: the specification as understood, and the code."""
    known = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{known}\n{found.kind}\n{found.filename}\n{code_sha256}".encode()).hexdigest()
