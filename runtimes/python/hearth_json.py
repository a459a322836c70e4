"""JSON by the interpreter's C functions alone.

The `json` package would bring regular expressions and enumerations along, a megabyte of memory that every fork has to
copy the tables of, and its layers of Python cost a fresh child more than the parsing.
"""

import _json
import sys

#: The interpreter's own limit, which bounds how deep the C functions go: a function may have raised it.
DEPTH_MAX = 1000

_markers = {}


class _Decoding:
    """What the C scanner wants to know."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name):
        return float(name.replace("Infinity", "inf"))


def _refuse(value):
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _encoder(escape):
    return _json.make_encoder(_markers, _refuse, escape, None, ":", ",", False, False, False)


_scan = _json.make_scanner(_Decoding)
_encode = _encoder(_json.encode_basestring)
_encode_ascii = _encoder(_json.encode_basestring_ascii)


def loads(data):
    """Raises ValueError or RecursionError."""
    text = data.decode().strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):  # the second when it looks for the class of its error in a package not loaded
        raise ValueError("not JSON") from None
    if end != len(text):
        raise ValueError("more than one value")
    return value


def dumps(value):
    """UTF-8. Raises TypeError, ValueError (NaN, infinity, circular) or RecursionError."""
    limit = sys.getrecursionlimit()
    if limit > DEPTH_MAX:
        sys.setrecursionlimit(DEPTH_MAX)
    try:
        try:
            return "".join(_encode(value, 0)).encode()
        except UnicodeEncodeError:  # half a surrogate pair: JSON can say it, UTF-8 cannot
            return "".join(_encode_ascii(value, 0)).encode()
    finally:
        if limit > DEPTH_MAX:
            sys.setrecursionlimit(limit)
        if _markers:
            _markers.clear()
