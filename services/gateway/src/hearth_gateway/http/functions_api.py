"""Routes of the function registry."""

import contextlib
import io
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hearth_contracts import names
from hearth_contracts.errors import InvalidName as BadName
from hearth_contracts.functions import CODE_PACKED_BYTES_MAX, FunctionHead, FunctionSpec, FunctionVersion
from hearth_gateway.calls import bodies
from hearth_gateway.domain import spec as specs
from hearth_gateway.errors import BadRequest, FunctionNotFound, InvalidName, SpecInvalid, Stalled, TooLarge, Unsupported
from hearth_gateway.functions.deploy import Deployer, Upload
from hearth_gateway.http.routing import Ask, Endpoint
from hearth_kit.registry import Registry

#: A deployment as JSON: the specification and one file of source.
JSON_BYTES_MAX: Final = 2 * 1024 * 1024
SPEC_BYTES_MAX: Final = 64 * 1024
_OVERHEAD_BYTES: Final = 256 * 1024


class DeployJson(BaseModel):
    """A deployment with its source inline. The spec's keys may also stand beside `source` themselves."""

    model_config = ConfigDict(extra="allow")

    spec: dict[str, Any] | str = Field(description="function.yaml as an object, or as text.")
    source: str = Field(description="The one file of source.")


class _UploadTooLarge(MultiPartException):
    """The parser closes what it has opened for errors of its own kind."""


class _UploadStalled(MultiPartException):
    """The same, for a client that went away."""


@dataclass(slots=True, eq=False)
class FunctionRoutes:
    deployer: Deployer
    registry: Registry

    def endpoints(self) -> list[Endpoint]:
        body = {
            "application/json": DeployJson.model_json_schema(),
            "multipart/form-data": {
                "type": "object", "required": ["spec", "code"],
                "properties": {
                    "spec": {"type": "string", "description": "function.yaml, as YAML or JSON"},
                    "code": {"type": "string", "format": "binary", "description": "zip, tar.gz or one file"},
                },
            },
        }  # fmt: skip
        tag = "functions"
        return [
            Endpoint("PUT", "/v1/functions/{name}", self.deploy, "Deploy a function", tag, body=body,
                answers={200: "this version is current already", 201: "a new version", 422: "what is wrong, field by field"}),
            Endpoint("GET", "/v1/functions", self.list, "List functions", tag),
            Endpoint("GET", "/v1/functions/{name}", self.show, "Show a function", tag,
                answers={200: "it", 404: "no such function"}),
            Endpoint("GET", "/v1/functions/{name}/versions", self.versions, "List a function's versions", tag,
                answers={200: "them", 404: "no such function"}),
            Endpoint("DELETE", "/v1/functions/{name}", self.delete, "Delete a function", tag,
                answers={204: "gone", 404: "no such function"}),
            Endpoint("GET", "/v1/schemas/function.json", self.schema, "The schema of function.yaml", tag, access="open"),
        ]  # fmt: skip

    async def deploy(self, ask: Ask) -> Response:
        name = ask.path("name")
        try:
            names.name("function", name)
        except BadName as error:
            raise InvalidName(f"function {name[:80]!r}: {error.rule}", fix=error.rule) from error
        request = ask.request
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Unsupported("a compressed request is not taken", fix="send it without Content-Encoding")
        kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
        async with contextlib.AsyncExitStack() as stack:
            if kind == "multipart/form-data":
                spec, upload = await _multipart(request, name, stack)
            elif kind in ("application/json", ""):
                spec, upload = await _json(request, name, stack)
            else:
                raise Unsupported(f"{kind[:80]!r} is not understood", fix="send application/json or multipart/form-data")
            version, made = await self.deployer.deploy(tenant=ask.tenant, spec=spec, upload=upload, by=ask.caller.prefix)
        return JSONResponse(_short(version), 201 if made else 200)

    async def list(self, ask: Ask) -> Response:
        found: list[dict[str, Any]] = []
        for head in self.registry.heads():
            if head.tenant == ask.tenant and not head.deleted:
                version = await self.registry.version(head.tenant, head.function, head.current)
                if version is not None:
                    found.append(_short(version))
        return JSONResponse({"functions": sorted(found, key=lambda item: item["name"])})

    async def _head(self, ask: Ask) -> FunctionHead:
        name = ask.path("name")
        try:
            fresh = await self.registry.fresh_head(ask.tenant, name)
        except BadName as error:
            raise FunctionNotFound(f"no function {name[:80]!r}") from error
        if fresh is None or fresh[1].deleted:
            raise FunctionNotFound(f"no function {name!r}")
        return fresh[1]

    async def show(self, ask: Ask) -> Response:
        head = await self._head(ask)
        version = await self.registry.version(head.tenant, head.function, head.current)
        if version is None:
            raise FunctionNotFound
        shown = {**_short(version), "spec": version.spec.model_dump(mode="json"), "versions": list(head.versions)}
        return JSONResponse({**shown, "code": version.code.model_dump(mode="json", exclude={"object"}), "reason": version.reason})

    async def versions(self, ask: Ask) -> Response:
        head = await self._head(ask)
        numbers = sorted(head.versions, reverse=True)
        found = [await self.registry.version(head.tenant, head.function, number) for number in numbers]
        return JSONResponse({"current": head.current, "versions": [_short(version) for version in found if version is not None]})

    async def delete(self, ask: Ask) -> Response:
        await self._head(ask)
        await self.deployer.delete(ask.tenant, ask.path("name"))
        return Response(status_code=204)

    async def schema(self, _: Ask) -> Response:
        return JSONResponse(FunctionSpec.model_json_schema())


def _short(version: FunctionVersion) -> dict[str, Any]:
    return {
        "name": version.function, "version": version.version, "digest": version.digest, "state": version.state.value,
        "runtime": version.spec.runtime.value, "backend": version.backend, "created_at": version.created_at,
        "created_by": version.created_by,
    }  # fmt: skip


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SpecInvalid(f"the key {key[:60]!r} stands there twice")
        found[key] = value
    return found


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_no_duplicates)


async def _json(request: Request, name: str, stack: contextlib.AsyncExitStack) -> tuple[FunctionSpec, Upload]:
    length = request.headers.get("content-length")
    bodies.announced(length.encode() if length is not None else None, bytes_max=JSON_BYTES_MAX)
    raw = await bodies.small(request.receive, bytes_max=JSON_BYTES_MAX)
    try:
        given = _parsed(raw.decode())
    except UnicodeDecodeError as error:
        raise BadRequest("the body is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error
    if not isinstance(given, dict):
        raise BadRequest("the body is an object with spec and source")
    source = given.pop("source", None)
    if not isinstance(source, str):
        raise BadRequest("source is missing", fix='send {"spec": {...}, "source": "..."}, or multipart with spec and code')
    if "spec" in given and len(given) > 1:
        raise BadRequest("beside spec and source nothing is expected", fix="put every key of the specification into spec")
    wanted = given.get("spec", given)
    spec = specs.from_text(wanted, name=name) if isinstance(wanted, str) else specs.from_data(wanted, name=name)
    try:
        data = source.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("source holds characters that are no text") from error
    return spec, _spooled(data, stack)


async def _multipart(request: Request, name: str, stack: contextlib.AsyncExitStack) -> tuple[FunctionSpec, Upload]:
    length = request.headers.get("content-length")
    bytes_max = CODE_PACKED_BYTES_MAX + _OVERHEAD_BYTES
    bodies.announced(length.encode() if length is not None else None, bytes_max=bytes_max)
    parser = MultiPartParser(
        request.headers, _limited(request, bytes_max), max_files=2, max_fields=2, max_part_size=JSON_BYTES_MAX
    )
    try:
        form = await parser.parse()
    except _UploadTooLarge as error:
        raise TooLarge(f"a bundle has at most {CODE_PACKED_BYTES_MAX // 1024 // 1024} MB") from error
    except _UploadStalled as error:
        raise Stalled from error
    except (MultiPartException, KeyError, ValueError) as error:
        raise BadRequest(f"the multipart body is malformed: {getattr(error, 'message', '') or error}") from error
    stack.push_async_callback(form.close)
    unexpected = sorted(set(form) - {"spec", "code"})
    if unexpected or len(form.multi_items()) != 2 or "code" not in form or "spec" not in form:
        raise BadRequest(f"send exactly two parts, spec and code{', not ' if unexpected else ''}{', '.join(unexpected)[:200]}")
    spec = _spec_of(await _text(form["spec"]), name)
    code = form["code"]
    if isinstance(code, UploadFile):
        size = code.size or 0
        if size > CODE_PACKED_BYTES_MAX:
            raise TooLarge(f"a bundle has at most {CODE_PACKED_BYTES_MAX // 1024 // 1024} MB")
        return spec, Upload(code.file, size, (code.filename or "").rpartition("/")[2])
    data = code.encode()
    return spec, _spooled(data, stack)


def _spooled(data: bytes, stack: contextlib.AsyncExitStack) -> Upload:
    return Upload(stack.enter_context(io.BytesIO(data)), len(data))


def _spec_of(text: str, name: str) -> FunctionSpec:
    """YAML, or JSON (whose tabs YAML would not like)."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            return specs.from_data(_parsed(text), name=name)
    return specs.from_text(text, name=name)


async def _text(part: UploadFile | str) -> str:
    if isinstance(part, str):
        raw = part.encode()
    else:
        raw = await part.read(SPEC_BYTES_MAX + 1)
    if len(raw) > SPEC_BYTES_MAX:
        raise SpecInvalid(f"the specification is larger than {SPEC_BYTES_MAX // 1024} KiB")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise SpecInvalid("the specification is not UTF-8") from error


async def _limited(request: Request, bytes_max: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes, cut off where it passes what a bundle may have."""
    seen = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _UploadStalled("the client went away")
        chunk: bytes = message.get("body", b"")
        seen += len(chunk)
        if seen > bytes_max:
            raise _UploadTooLarge("too large")
        if chunk:
            yield chunk
        more = bool(message.get("more_body"))
    yield b""
