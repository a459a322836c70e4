"""How an ended call is answered over HTTP."""

from typing import Final

from hearth_contracts.calls import Ending
from hearth_contracts.enums import Reason, State
from hearth_gateway.errors import Problem

_FAILURES: Final[dict[Reason, tuple[int, str, str, str]]] = {
    Reason.ERROR: (502, "E_FUNCTION_ERROR", "The function raised an error.", "mend the function; the traceback shows where"),
    Reason.OOM: (502, "E_FUNCTION_OOM", "The function used more memory than it may.", "raise memory_mb, or use less memory"),
    Reason.RESOURCE: (502, "E_FUNCTION_RESOURCE", "The function passed a limit of its sandbox.",
        "start fewer processes or write smaller files"),
    Reason.BAD_RESULT: (502, "E_FUNCTION_BAD_RESULT", "The function returned something that cannot be sent.",
        "return what JSON can hold, text or bytes"),
    Reason.TIMEOUT: (504, "E_FUNCTION_TIMEOUT", "The function took longer than its timeout.", "raise timeout_s, or do less"),
    Reason.CANCELLED: (409, "E_CANCELLED", "The call was cancelled.", "call again if that was not intended"),
    Reason.RECURSION: (508, "E_RECURSION", "Functions called each other too deeply.", "break the circle of calls"),
    Reason.LOST: (502, "E_FUNCTION_LOST", "The call was lost with what ran it, and may not be tried again.",
        "call again if the function may run twice, or allow more attempts with retry"),
    Reason.IMAGE: (503, "E_IMAGE", "The runtime's image is missing.", "an operator runs: ./hearth images build"),
    Reason.REJECTED: (503, "E_REJECTED", "No executor can run this call.",
        "compare the function's memory, labels and runtime with the fleet in GET /v1/system"),
}  # fmt: skip


def kinds() -> list[Problem]:
    """One of each, for the documents."""
    return [Problem(status, code, title, fix=fix) for status, code, title, fix in _FAILURES.values()]


def failure(ending: Ending) -> Problem | None:
    """The problem a failed call is answered with; None for a success."""
    if ending.state is State.SUCCESS:
        return None
    status, code, title, fix = _FAILURES[ending.reason or Reason.ERROR]
    told = ending.failure
    extra: dict[str, object] = {}
    if told is not None:
        extra["error_type"] = told.type
        if told.traceback:
            extra["traceback"] = told.traceback
    return Problem(
        status=status, code=code, title=title, detail=told.message if told is not None and told.message else title, fix=fix,
        extra=extra, retry_after_s=2 if status == 503 else None,
    )  # fmt: skip
