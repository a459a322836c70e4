"""From a handler to a result: how it is called, what it returns, what it raises."""

import binascii
import errno
import io
import os
import sys

import hearth_frames as frames
import hearth_json
from hearth_context import encode_value

HERE = os.path.dirname(os.path.abspath(__file__)) + "/"
#: A result inside its frame is at most this long; a longer one goes ahead as data.
INLINE_BYTES_MAX = 128 * 1024
TRACEBACK_FRAMES_MAX = 50
TRACEBACK_CHARS_MAX = 16 * 1024
MESSAGE_CHARS_MAX = 4 * 1024
HTTP_HEADERS_MAX = 100

#: What the kernel answers when a limit of the sandbox is reached.
_RESOURCE_ERRORS = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EFBIG, errno.EDQUOT))
_NOT_IN_NAMES = frozenset('"(),/:;<=>?@[\\]{} \t')
HEADER_NAME_CHARS_MAX = 200
HEADER_VALUE_CHARS_MAX = 8192


class BadResult(Exception):
    """The handler returned something that is no result."""


class Result:
    """`head` is None for the usual one: a success with nothing to say but its content type."""

    __slots__ = ("body", "content_type", "head")

    def __init__(self, body, content_type, head=None):
        self.body = body
        self.content_type = content_type
        self.head = head

    def payload(self, cpu_us, rss_kb):
        if self.head is None:
            head = b'{"reason":null,"content_type":"%b","cpu_us":%d,"rss_kb":%d}'
            head %= (self.content_type.encode(), cpu_us, rss_kb)
            return frames.META.pack(len(head)) + head + self.body
        head = {"reason": None, "content_type": self.content_type, **self.head, "cpu_us": cpu_us, "rss_kb": rss_kb}
        return frames.with_meta(head, self.body)


def event(content_type, body):
    """The parsed JSON, else the text, else the bytes, by content type."""
    kind = content_type
    if kind != "application/json":
        kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        if not body:
            return None
        try:
            return hearth_json.loads(body)
        except (ValueError, RecursionError):
            kind = "text/plain"
    if kind.startswith("text/") or kind in ("application/xml", "application/x-www-form-urlencoded"):
        charset = content_type.partition("charset=")[2].split(";")[0].strip(" \"'") or "utf-8"
        try:
            return body.decode(charset)
        except (UnicodeDecodeError, LookupError):
            return body
    return body


def of_call(handler, event, context, channel, *, http):
    """Run the handler and make its result. Nothing a function raises gets past this."""
    try:
        value = handler(event, context)
        kind = type(value)
        if kind is not dict and hasattr(kind, "__await__"):
            value = _await(value)
            kind = type(value)
        if kind is dict and not http:
            return _result(*_encode(value), channel)
        return _of_value(value, channel, http=http)
    except BadResult as error:
        return failed("bad_result", {"type": "BadResult", "message": str(error), "traceback": ""})
    except BaseException as error:
        return failed(_reason(error), describe(error))


def with_files(result, context, folder):
    """The same, once its output files have left: they are part of it, so that one which cannot leave is a failure."""
    try:
        context.close()
        if result.head is None or "reason" not in result.head:
            context.send_left(folder)
    except BaseException as error:
        return failed(_reason(error), describe(error))
    return result


def failed(reason, error):
    return Result(b"", "", {"reason": reason, "error": error})


def _result(body, content_type, channel, head=None):
    if len(body) > INLINE_BYTES_MAX:
        channel.send_data(frames.RESULT_DATA, body)
        return Result(b"", content_type, {"size": len(body), **(head or {})})
    return Result(body, content_type, head)


def _await(value):
    import asyncio

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
    head = None
    if http and isinstance(value, dict) and "statusCode" in value:
        value, head = _http(value)
    body, content_type = _encode(value)
    if head is not None:
        content_type = head.pop("content_type", content_type)
    return _result(body, content_type, channel, head)


def _iterate(generator):
    import asyncio

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
    return Result(b"", content_type or "application/octet-stream", {"size": size})


def _encode(value):
    try:
        return encode_value(value)
    except RecursionError:
        raise BadResult(f"the result is nested deeper than {hearth_json.DEPTH_MAX} levels") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BadResult(f"the result cannot be written as JSON: {_text(error)}") from None


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
        if not _is_header_name(name) or not _is_header_value(text):
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


def _is_header_name(name):
    fits = 0 < len(name) <= HEADER_NAME_CHARS_MAX and name.isascii() and name.isprintable()
    return fits and _NOT_IN_NAMES.isdisjoint(name)


def _is_header_value(text):
    if len(text) > HEADER_VALUE_CHARS_MAX:
        return False
    return not any((letter < " " and letter != "\t") or letter == "\x7f" for letter in text)


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
    text = _traceback(error, frame)
    message = _text(error)
    if isinstance(error, SystemExit):
        message = f"the function called sys.exit({message})"
    if len(text) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        text = f"{text[:half]}\n  ...\n{text[-half:]}"
    return {"type": type(error).__name__, "message": message, "traceback": _clean(text)}


def _traceback(error, frame):
    """As the interpreter itself prints it: the `traceback` module would have to be loaded, and is slow to load."""
    stderr, limit = sys.stderr, getattr(sys, "tracebacklimit", None)
    sys.stderr = printed = io.StringIO()
    sys.tracebacklimit = TRACEBACK_FRAMES_MAX
    try:
        sys.__excepthook__(type(error), error.with_traceback(frame), frame)
    finally:
        sys.stderr = stderr
        if limit is None:
            del sys.tracebacklimit
        else:
            sys.tracebacklimit = limit
    return printed.getvalue()


def _text(error):
    try:
        return _clean(str(error)[:MESSAGE_CHARS_MAX])
    except BaseException:
        return "(its message could not be made)"


def _clean(text):
    return text.encode("utf-8", "backslashreplace").decode()
