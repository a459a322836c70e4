"""From a handler to a result: how it is called, what it returns, what it raises."""

import binascii
import errno
import json
import os
import re
import sys
import traceback

import hearth_frames as frames
from hearth_context import encode_value

HERE = os.path.dirname(os.path.abspath(__file__)) + "/"
#: A result inside its frame is at most this long; a longer one goes ahead as data.
INLINE_BYTES_MAX = 128 * 1024
#: Deepest nesting of a result: readers in other languages, and in Python, stop not far above.
JSON_DEPTH_MAX = 500
TRACEBACK_FRAMES_MAX = 50
TRACEBACK_CHARS_MAX = 16 * 1024
MESSAGE_CHARS_MAX = 4 * 1024
HTTP_HEADERS_MAX = 100

#: What the kernel answers when a limit of the sandbox is reached.
_RESOURCE_ERRORS = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EFBIG, errno.EDQUOT))
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]{0,8192}")


class BadResult(Exception):
    """The handler returned something that is no result."""


class Result:
    def __init__(self, body=b"", **meta):
        self.body = body
        self.meta = {"reason": None, **meta}


def event(meta, body):
    """The parsed JSON, else the text, else the bytes, by content type."""
    kind, _, parameters = meta["content_type"].partition(";")
    kind = kind.strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        if not body:
            return None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            kind = "text/plain"
    if kind.startswith("text/") or kind in ("application/xml", "application/x-www-form-urlencoded"):
        charset = parameters.partition("charset=")[2].split(";")[0].strip(" \"'") or "utf-8"
        try:
            return body.decode(charset)
        except (UnicodeDecodeError, LookupError):
            return body
    return body


def of_call(handler, event, context, channel, meta):
    """Run the handler and make its result. Nothing a function raises gets past this."""
    try:
        value = handler(event, context)
        if hasattr(value, "__await__"):
            value = _await(value)
        return _of_value(value, channel, http=meta["http"] is not None)
    except BadResult as error:
        return Result(reason="bad_result", error={"type": "BadResult", "message": str(error), "traceback": ""})
    except BaseException as error:  # noqa: BLE001 - sys.exit() and KeyboardInterrupt are failures like any other
        return Result(reason=_reason(error), error=describe(error))


def _await(value):
    import asyncio  # noqa: PLC0415 - only functions that need it pay for it

    return _loop(asyncio).run_until_complete(value)


def _loop(asyncio, kept=[]):  # noqa: B006 - one loop for the life of the process: clients kept in globals belong to it
    if not kept:
        kept.append(asyncio.new_event_loop())
        asyncio.set_event_loop(kept[0])
    return kept[0]


def _of_value(value, channel, *, http):
    if hasattr(value, "__next__"):
        return _of_stream(value, channel)
    if hasattr(value, "__anext__"):
        return _of_stream(_iterate(value), channel)
    head = {}
    if http and isinstance(value, dict) and "statusCode" in value:
        value, head = _http(value)
    body, content_type = _encode(value)
    head.setdefault("content_type", content_type)
    if len(body) <= INLINE_BYTES_MAX:
        return Result(body, **head)
    channel.send_data(frames.RESULT_DATA, body)
    return Result(size=len(body), **head)


def _iterate(generator):
    import asyncio  # noqa: PLC0415

    loop = _loop(asyncio)
    while True:
        try:
            yield loop.run_until_complete(generator.__anext__())
        except StopAsyncIteration:
            return


def _of_stream(values, channel):
    """Each value leaves as it is made: bytes and text as they are, anything else as a line of JSON."""
    size, content_type = 0, None
    for value in values:
        data, kind = _encode(value)
        if kind == "application/json":
            data, kind = data + b"\n", "application/x-ndjson"
        content_type = content_type or kind
        size += len(data)
        channel.send_data(frames.RESULT_DATA, data)
    return Result(size=size, content_type=content_type or "application/octet-stream")


def _encode(value):
    # A function may have raised the limit, and the encoder would then exhaust the C stack on a deep result.
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(JSON_DEPTH_MAX)
        return encode_value(value)
    except RecursionError:
        raise BadResult(f"the result is nested deeper than {JSON_DEPTH_MAX} levels") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BadResult(f"the result cannot be written as JSON: {_text(error)}") from None
    finally:
        sys.setrecursionlimit(limit)


def _http(value):
    """`{"statusCode", "headers", "body"}` as API gateways know it."""
    status = value["statusCode"]
    try:
        status = int(status)
    except (TypeError, ValueError):
        status = 0
    if not 200 <= status <= 599:
        raise BadResult("statusCode must be a number from 200 to 599")
    headers = []
    for source in (value.get("headers"), value.get("multiValueHeaders")):
        for name, given in (source or {}).items():
            for each in given if isinstance(given, (list, tuple)) else (given,):
                headers.append((str(name), str(each)))
    headers += [("set-cookie", str(cookie)) for cookie in value.get("cookies") or ()]
    if len(headers) > HTTP_HEADERS_MAX:
        raise BadResult(f"a response may have {HTTP_HEADERS_MAX} headers")
    for name, text in headers:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
            raise BadResult(f"the header {name[:100]!r} cannot be sent")
    head = {"status": status, "headers": headers}
    for name, text in headers:
        if name.lower() == "content-type":
            head["content_type"] = text
    body = value.get("body")
    if value.get("isBase64Encoded") and isinstance(body, str):
        try:
            body = binascii.a2b_base64(body, strict_mode=True)
        except ValueError:
            raise BadResult("isBase64Encoded is set and the body is not base64") from None
    return b"" if body is None else body, head


def _reason(error):
    if isinstance(error, MemoryError):
        return "oom"
    if isinstance(error, OSError) and error.errno in _RESOURCE_ERRORS:
        return "resource"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return "resource"
    return "error"


def describe(error):
    """Type, message and a traceback that begins where the user's code begins."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith((HERE, "<frozen importlib")):
        frame = frame.tb_next
    try:
        lines = traceback.format_exception(type(error), error, frame, limit=-TRACEBACK_FRAMES_MAX)
    except BaseException:  # noqa: BLE001 - a broken __str__ or __cause__ is the function's, and no reason to fail here
        lines = traceback.format_tb(frame, limit=-TRACEBACK_FRAMES_MAX)
    message = _text(error)
    if isinstance(error, SystemExit):
        message = f"the function called sys.exit({message})"
    text = "".join(lines)
    if len(text) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        text = f"{text[:half]}\n  ...\n{text[-half:]}"
    return {"type": type(error).__name__, "message": message, "traceback": _clean(text)}


def _text(error):
    try:
        return _clean(str(error)[:MESSAGE_CHARS_MAX])
    except BaseException:  # noqa: BLE001
        return "(its message could not be made)"


def _clean(text):
    return text.encode("utf-8", "backslashreplace").decode()
