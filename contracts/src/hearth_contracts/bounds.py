"""How large the parts of a meta may be, in the bytes that they become.

A meta is one header of a message, JSON in UTF-8, and a stream refuses a message whose headers pass 64 KiB. Characters say
little of that: JSON makes six bytes of a control character, two of a quotation mark, and UTF-8 four of an emoji.

The largest metas, of at most `META_BYTES_MAX`:

    record of a success    BASE + 2 content types + HTTP_REQUEST + HTTP_HEADERS + OUTPUTS    = 58.5 KiB
    record of a failure    BASE + 2 content types + HTTP_REQUEST + FAILURE                   = 38.5 KiB
    outcome, dead          the same as the record of a failure                               = 38.5 KiB
    run, call              BASE + 1 content type + HTTP_REQUEST                              = 14.25 KiB

`OUTPUTS` holds `calls.OUTPUTS_MAX` files whose names and content types are as long as they may be, as long as JSON has little
to escape in them.
"""

import json
from collections.abc import Iterable
from typing import Final

from hearth_contracts.calls import Body, Call, Ending, Failure, HttpRequest, Record

#: Below the broker's 64 KiB, for the other headers of the message and for fields to come.
META_BYTES_MAX: Final = 60 * 1024
#: Everything of a meta whose size is not its sender's choice: ids, names, numbers, times and the names of fields.
BASE_BYTES_MAX: Final = 2 * 1024
#: One content type.
CONTENT_TYPE_BYTES_MAX: Final = 256
#: The method, path, query and headers of a plain HTTP call, as JSON.
HTTP_REQUEST_BYTES_MAX: Final = 12 * 1024
#: The HTTP headers of a result, as JSON.
HTTP_HEADERS_BYTES_MAX: Final = 8 * 1024
#: The type, message and traceback of a failure, together; of these the first two.
FAILURE_BYTES_MAX: Final = 24 * 1024
FAILURE_TYPE_BYTES_MAX: Final = 256
FAILURE_MESSAGE_BYTES_MAX: Final = 6 * 1024
#: All output files of a call; one has its name, its content type and the rest: ids, digest, size, names of fields.
OUTPUTS_BYTES_MAX: Final = 36 * 1024
OUTPUT_TYPE_BYTES_MAX: Final = 100
OUTPUT_BASE_BYTES: Final = 65 + 64 + 14
#: What a stripped failure keeps of each of its texts: enough to see what it was.
STRIPPED_BYTES_MAX: Final = 300
#: Stands where something was cut out.
MARK: Final = " ...[cut]... "


def text_bytes(text: str) -> int:
    """What a text becomes inside a meta, without its quotation marks."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return len(text)
    return len(_encoded(text)) - 2


def pairs_bytes(pairs: Iterable[tuple[str, str]]) -> int:
    """What HTTP headers become inside a meta."""
    return 2 + sum(text_bytes(name) + text_bytes(value) + 8 for name, value in pairs)


def http_bytes(http: HttpRequest) -> int:
    """What a plain HTTP call becomes inside a meta."""
    return 64 + text_bytes(http.method) + text_bytes(http.path) + text_bytes(http.query) + pairs_bytes(http.headers)


def output_bytes(name: str, content_type: str, object_id: str) -> int:
    """What an output file becomes inside a meta, at most."""
    return OUTPUT_BASE_BYTES + text_bytes(name) + text_bytes(content_type) + len(object_id)


def clip(text: str, bytes_max: int) -> str:
    """As much of it as fits: its beginning and its end, for both tell what happened. Half a surrogate pair, which no UTF-8
    holds, becomes a question mark."""
    if len(text) <= bytes_max:
        text = _whole(text)
        if text_bytes(text) <= bytes_max:
            return text
    room = max(0, bytes_max - len(MARK)) // 2
    # A character is a byte at least: more of the text than this cannot stay, however long it is.
    head, tail = _whole(text[:room]), _whole(text[len(text) - room :])
    return _fitting(head, room) + MARK[:bytes_max] + _fitting(tail[::-1], room)[::-1]


def failure(type_name: str, message: str, traceback: str = "") -> Failure:
    """What of a failure travels."""
    kind = clip(type_name, FAILURE_TYPE_BYTES_MAX)
    words = clip(message, FAILURE_MESSAGE_BYTES_MAX)
    left = FAILURE_BYTES_MAX - text_bytes(kind) - text_bytes(words) - 64
    return Failure(type=kind, message=words, traceback=clip(traceback, left))


def content_type(value: str) -> str:
    """A content type that travels. One too long says nothing that could be shortened."""
    value = _whole(value) if len(value) <= CONTENT_TYPE_BYTES_MAX else ""
    return value if value and text_bytes(value) <= CONTENT_TYPE_BYTES_MAX else "application/octet-stream"


# What is left of a meta that does not fit although all of the above holds


def stripped(ending: Ending) -> Ending:
    """The end itself: what was said of it only as far as it helps, nothing of HTTP."""
    why = ending.failure
    if why is not None:
        why = Failure(
            type=clip(why.type, STRIPPED_BYTES_MAX),
            message=clip(why.message, STRIPPED_BYTES_MAX),
            traceback=clip(why.traceback, STRIPPED_BYTES_MAX),
        )
    return ending.model_copy(update={"failure": why, "http_headers": (), "result": _plain(ending.result)})


def stripped_call(call: Call) -> Call:
    return call.model_copy(update={"http": None, "input": _plain(call.input)})


def stripped_record(record: Record) -> Record:
    return record.model_copy(update={"ending": stripped(record.ending), "http": None, "input": _plain(record.input)})


def _plain(body: Body) -> Body:
    return body.model_copy(update={"content_type": content_type(body.content_type)})


def _encoded(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")


def _whole(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _fitting(text: str, bytes_max: int) -> str:
    """The longest beginning that fits."""
    if text_bytes(text) <= bytes_max:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_bytes(text[:middle]) <= bytes_max:
            low = middle
        else:
            high = middle - 1
    return text[:low]
