"""Everything the gateway refuses, as one small tree. An error's docstring is its title, its `code` never changes.

GatewayError
├── BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, TooLarge, Unsupported, Stalled
├── FunctionNotFound, JobNotFound, OutputNotFound, KeyNotFound, ObjectGone
├── InvalidInput
│   ├── SpecInvalid, NotAvailable
│   └── BundleInvalid, HandlerMissing, SyntaxInvalid, RequirementsNotVendored
├── IdempotencyMismatch, JobFinished, JobNotFinished, KeyInUse, InputGone, ResultGone, OutputGone, Conflict,
│   RangeUnsatisfiable
├── RateLimited, QueueFull
└── Unavailable
    └── NoBroker, NoCapacity, StoreFull, Overloaded, ArchiveAway, Stopping, NoModelServer
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with what was sent."""

    field: str
    message: str
    line: int = 0
    hint: str = ""

    def json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"field": self.field, "message": self.message}
        if self.line:
            out["line"] = self.line
        if self.hint:
            out["hint"] = self.hint
        return out


@dataclass(frozen=True, slots=True)
class Problem:
    """RFC 9457, with a stable code and what to do about it."""

    status: int
    code: str
    title: str
    detail: str = ""
    fix: str = ""
    errors: Sequence[FieldError] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: float | None = None
    headers: Sequence[Header] = ()

    def json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "type": f"/docs#{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail or self.title,
            "code": self.code,
            "fix": self.fix,
        }
        if self.errors:
            out["errors"] = [error.json() for error in self.errors]
        return {**out, **self.extra}

    def body(self) -> bytes:
        return json.dumps(self.json(), separators=(",", ":")).encode()


class GatewayError(Exception):
    """The request was refused."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "E_BAD_REQUEST"
    fix: ClassVar[str] = "see /docs"
    retry_after_s: ClassVar[float | None] = None

    def __init__(
        self,
        detail: str = "",
        *,
        fix: str = "",
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
        headers: Sequence[Header] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail or self.__doc__)
        self.detail = detail
        self.problem_fix = fix or self.fix
        self.errors = tuple(errors)
        self.after_s = self.retry_after_s if retry_after_s is None else retry_after_s
        self.headers = tuple(headers)
        self.extra = extra or {}

    @property
    def problem(self) -> Problem:
        return Problem(
            status=self.status, code=self.code, title=(self.__doc__ or "").strip(), detail=self.detail, fix=self.problem_fix,
            errors=self.errors, extra=self.extra, retry_after_s=self.after_s, headers=self.headers,
        )  # fmt: skip


class BadRequest(GatewayError):
    """The request is malformed."""


class Unauthorized(GatewayError):
    """A valid API key is needed."""

    status, code = 401, "E_UNAUTHORIZED"
    fix = "send the key as x-api-key, or as Authorization: Bearer"


class Forbidden(GatewayError):
    """This key may not do that."""

    status, code = 403, "E_FORBIDDEN"
    fix = "use an admin key"


class NotFound(GatewayError):
    """There is nothing at this address."""

    status, code = 404, "E_NOT_FOUND"
    fix = "see /docs for the routes"


class FunctionNotFound(GatewayError):
    """There is no such function."""

    status, code = 404, "E_FUNCTION_NOT_FOUND"
    fix = "deploy it with PUT /v1/functions/{name}, or list what exists with GET /v1/functions"


class JobNotFound(GatewayError):
    """There is no such job."""

    status, code = 404, "E_JOB_NOT_FOUND"
    fix = "list jobs with GET /v1/jobs"


class OutputNotFound(GatewayError):
    """The job has no output file of that name."""

    status, code = 404, "E_OUTPUT_NOT_FOUND"
    fix = "see GET /v1/jobs/{id}/outputs"


class KeyNotFound(GatewayError):
    """There is no such key."""

    status, code = 404, "E_KEY_NOT_FOUND"
    fix = "list keys with GET /v1/keys"


class MethodNotAllowed(GatewayError):
    """This address does not take this method."""

    status, code = 405, "E_METHOD_NOT_ALLOWED"


class Stalled(GatewayError):
    """The request ended before its body was complete."""

    status, code = 400, "E_INCOMPLETE_BODY"
    fix = "send as many bytes as Content-Length says"


class TooLarge(GatewayError):
    """The body passes its limit."""

    status, code = 413, "E_TOO_LARGE"


class Unsupported(GatewayError):
    """This kind of body is not understood here."""

    status, code = 415, "E_UNSUPPORTED_BODY"


class InvalidInput(GatewayError):
    """What was sent does not pass its checks."""

    status, code = 422, "E_INVALID_INPUT"


class InvalidName(InvalidInput):
    """A name holds characters that names may not hold."""

    code = "E_INVALID_NAME"


class SpecInvalid(InvalidInput):
    """The function's specification does not pass its checks."""

    code = "E_SPEC_INVALID"
    fix = "mend the fields named in errors; the schema is at /v1/schemas/function.json"


class NotAvailable(InvalidInput):
    """The specification asks for a feature that is not offered here."""

    code = "E_NOT_AVAILABLE"


class BundleInvalid(InvalidInput):
    """The code bundle does not pass its checks."""

    code = "E_BUNDLE_INVALID"
    fix = "pack plain files and folders only, with relative names"


class HandlerMissing(InvalidInput):
    """The handler is not in the code."""

    code = "E_HANDLER_MISSING"


class SyntaxInvalid(InvalidInput):
    """The handler's file does not parse."""

    code = "E_SYNTAX"
    fix = "mend the line named in errors"


class RequirementsNotVendored(InvalidInput):
    """The bundle has a requirements.txt, but its packages are not vendored."""

    code = "E_REQUIREMENTS_NOT_VENDORED"
    fix = "run: pip install --target vendor -r requirements.txt, and pack the folder vendor with the code"


class IdempotencyMismatch(GatewayError):
    """This Idempotency-Key was used with another body."""

    status, code = 422, "E_IDEMPOTENCY_MISMATCH"
    fix = "use a new key for a new request"


class Conflict(GatewayError):
    """Somebody else changed this at the same time."""

    status, code = 409, "E_CONFLICT"
    fix = "try again"


class JobFinished(GatewayError):
    """The job has ended already."""

    status, code = 409, "E_JOB_FINISHED"
    fix = "nothing is left to cancel; see GET /v1/jobs/{id}"


class JobNotFinished(GatewayError):
    """The job has not ended yet."""

    status, code = 409, "E_JOB_NOT_FINISHED"
    fix = "wait for it with GET /v1/jobs/{id}?wait=30"
    retry_after_s = 1


class KeyInUse(GatewayError):
    """A key cannot revoke itself."""

    status, code = 409, "E_KEY_IN_USE"
    fix = "revoke it with another admin key"


class InputGone(GatewayError):
    """The job's input is no longer kept."""

    status, code = 410, "E_INPUT_GONE"
    fix = "call the function again with its input"


class ResultGone(GatewayError):
    """The job's result is no longer kept here."""

    status, code = 410, "E_RESULT_GONE"
    fix = "read it from the stores, or replay the job"


class OutputGone(GatewayError):
    """The output file is no longer kept here."""

    status, code = 410, "E_OUTPUT_GONE"
    fix = "read it from the stores, or replay the job"


class RangeUnsatisfiable(GatewayError):
    """The range lies outside of the file."""

    status, code = 416, "E_RANGE"
    fix = "ask for bytes below the size in Content-Range"


class RateLimited(GatewayError):
    """This key asks too often."""

    status, code = 429, "E_RATE_LIMITED"
    fix = "wait for Retry-After seconds, or ask for a higher rate"


class QueueFull(GatewayError):
    """As many calls of this function wait as may wait."""

    status, code = 429, "E_QUEUE_FULL"
    fix = "wait for Retry-After seconds, or raise queue.depth"
    retry_after_s = 1


class Unavailable(GatewayError):
    """The platform cannot take this now."""

    status, code = 503, "E_UNAVAILABLE"
    fix = "wait for Retry-After seconds"
    retry_after_s = 1


class NoBroker(Unavailable):
    """The broker is away."""

    code = "E_NO_BROKER"
    fix = "wait for Retry-After seconds; an operator sees why in /readyz"


class NoCapacity(Unavailable):
    """Nothing that could run this call is alive."""

    code = "E_NO_CAPACITY"
    fix = "wait for Retry-After seconds; an operator sees the fleet in GET /v1/system"
    retry_after_s = 2


class StoreFull(Unavailable):
    """The platform's store of finished calls is nearly full."""

    code = "E_STORE_FULL"
    fix = "wait until the stores have caught up; an operator sees the streams in GET /v1/system"
    retry_after_s = 10


class Overloaded(Unavailable):
    """This gateway holds as many calls as it may hold."""

    code = "E_OVERLOADED"


class ArchiveAway(Unavailable):
    """The keeper of older jobs does not answer."""

    code = "E_ARCHIVE_AWAY"
    retry_after_s = 5


class NoModelServer(Unavailable):
    """No model server is configured."""

    code = "E_NO_MODEL_SERVER"
    fix = "configure a model server for the ai-proxy"
    retry_after_s = 60


def kinds() -> list[Problem]:
    """One of each, for the documents."""
    found: list[Problem] = []
    waiting: list[type[GatewayError]] = [GatewayError]
    while waiting:
        kind = waiting.pop(0)
        waiting.extend(kind.__subclasses__())
        if kind is not GatewayError:
            found.append(kind().problem)
    return sorted(found, key=lambda problem: (problem.status, problem.code))
