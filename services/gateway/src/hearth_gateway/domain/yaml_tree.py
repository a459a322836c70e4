"""`function.yaml` as plain data with the line of every key, read so that no text can hurt.

The parser's events are walked by hand: no aliases (a bomb needs them), no tags (`!!python/...` is never built, it is
refused), no duplicate keys, bounded depth. Words are read as YAML 1.2 reads them: `no` and `on` are text.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

TEXT_BYTES_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 16
NODES_MAX: Final = 10_000

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_INT: Final = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")
_TAGS: Final = frozenset({None, "tag:yaml.org,2002:str", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float",
    "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})  # fmt: skip
_STRING_TAG: Final = "tag:yaml.org,2002:str"
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path = tuple[str | int, ...]


class YamlError(ValueError):
    """This text is not acceptable YAML."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class Tree:
    """The data, and on which line each of its parts stands."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    """A mapping or sequence that is not closed yet."""

    value: dict[str, Any] | list[Any]
    path: Path
    key: str | None = None


def parse(text: str) -> Tree:
    """One document. Raises `YamlError`."""
    if len(text.encode("utf-8", "replace")) > TEXT_BYTES_MAX:
        raise YamlError(f"the text is larger than {TEXT_BYTES_MAX // 1024} KiB", 1)
    try:
        return _Builder().build(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(error.problem or "the text is not YAML", mark.line + 1 if mark is not None else 1) from error
    except yaml.YAMLError as error:
        raise YamlError("the text holds characters YAML does not allow", 1) from error


class _Builder:
    def __init__(self) -> None:
        self._stack: list[_Open] = []
        self._lines: dict[Path, int] = {}
        self._root: Any = None
        self._documents = 0

    def build(self, text: str) -> Tree:
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            self._take(event, line)
        return Tree(self._root, self._lines)

    def _take(self, event: Any, line: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise YamlError("aliases (*name) are not allowed: write the value out", line)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise YamlError("more than one document", line)
        elif isinstance(event, yaml.ScalarEvent):
            self._check_tag(event.tag, line)
            self._scalar(event, line)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._check_tag(event.tag, line)
            value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            path = self._place(value, line)
            if len(self._stack) >= DEPTH_MAX:
                raise YamlError(f"nested more than {DEPTH_MAX} deep", line)
            self._stack.append(_Open(value, path))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._stack.pop()

    def _check_tag(self, tag: str | None, line: int) -> None:
        if tag not in _TAGS:
            raise YamlError(f"the tag {str(tag)[:60]!r} is not allowed: only plain values are", line)

    def _scalar(self, event: Any, line: int) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            key = event.value
            if key in top.value:
                raise YamlError(f"the key {key[:60]!r} stands here twice", line)
            top.key = key
            self._lines[(*top.path, key)] = line
            return
        plain = not event.style and event.tag != _STRING_TAG  # libyaml says "" where the parser in Python says None
        self._place(_plain(event.value) if plain else event.value, line)

    def _place(self, value: Any, line: int) -> Path:
        """Put a value where it belongs; its path."""
        if len(self._lines) > NODES_MAX:
            raise YamlError(f"more than {NODES_MAX} values", line)
        if not self._stack:
            self._root = value
            self._lines[()] = line
            return ()
        top = self._stack[-1]
        if isinstance(top.value, list):
            path: Path = (*top.path, len(top.value))
            top.value.append(value)
            self._lines[path] = line
            return path
        if top.key is None:
            raise YamlError("a key must be a single word", line)
        path = (*top.path, top.key)
        top.value[top.key] = value
        top.key = None
        return path


def _plain(text: str) -> Any:
    """A plain word as YAML 1.2's core reads it."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
