"""From what a person wrote to a `FunctionSpec`, or to words that help."""

import difflib
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from hearth_contracts.enums import BackendChoice, Runtime
from hearth_contracts.functions import NOT_AVAILABLE, FunctionSpec
from hearth_gateway.domain import yaml_tree
from hearth_gateway.domain.yaml_tree import Path
from hearth_gateway.errors import FieldError, NotAvailable, SpecInvalid

#: Keys inside groups whose feature is not offered yet; the rest of such keys is in the contracts' `NOT_AVAILABLE`.
_NOT_AVAILABLE_INSIDE: Final = {
    ("queue", "key"): "calls of one function run in the order they find room",
    ("queue", "rate"): "the rate per key is the platform's",
    ("scale", "run"): "call the function instead of keeping it running; scale.min_warm keeps copies warm",
}
_ERRORS_MAX: Final = 20


def from_text(text: str, *, name: str) -> FunctionSpec:
    """A specification in YAML or JSON. Raises `SpecInvalid` or `NotAvailable`."""
    try:
        tree = yaml_tree.parse(text)
    except yaml_tree.YamlError as error:
        raise SpecInvalid(
            f"line {error.line}: {error.message}", errors=[FieldError("spec", error.message, line=error.line)]
        ) from error
    return from_data(tree.data, name=name, lines=tree.lines)


def from_data(data: Any, *, name: str, lines: dict[Path, int] | None = None) -> FunctionSpec:
    """A specification as data. `name` is the one in the address: the spec's may be left out, never differ."""
    lines = lines or {}
    if not isinstance(data, dict):
        raise SpecInvalid("the specification is a set of keys and values")
    given = {str(key): value for key, value in data.items()}
    if given.setdefault("name", name) != name:
        raise SpecInvalid(
            f"the specification says {str(given['name'])[:80]!r}, the address {name!r}",
            errors=[FieldError("name", f"must be {name!r}, as in the address", line=lines.get(("name",), 0))],
        )
    _refuse_unavailable(given, lines)
    try:
        spec = FunctionSpec.model_validate(given)
    except ValidationError as error:
        raise _explain(error, given, lines) from error
    _refuse_choices(spec, lines)
    _refuse_contradictions(spec, lines)
    return spec


def _refuse_unavailable(given: dict[str, Any], lines: dict[Path, int]) -> None:
    found: list[FieldError] = []
    for key, instead in NOT_AVAILABLE.items():
        if key in given:
            found.append(FieldError(key, "this feature is not offered here", lines.get((key,), 0), instead))
    for path, instead in _NOT_AVAILABLE_INSIDE.items():
        group = given.get(path[0])
        if isinstance(group, dict) and path[1] in group:
            found.append(FieldError(".".join(path), "this feature is not offered here", lines.get(path, 0), instead))
    concurrency = given.get("concurrency")
    if isinstance(concurrency, int) and not isinstance(concurrency, bool) and concurrency > 1:
        line = lines.get(("concurrency",), 0)
        message = "more than one call at once in a sandbox is not offered here"
        found.append(FieldError("concurrency", message, line, "raise scale.max"))
    if found:
        raise _not_available(found)


def _refuse_choices(spec: FunctionSpec, lines: dict[Path, int]) -> None:
    found: list[FieldError] = []
    if spec.runtime is not Runtime.PYTHON:
        message = f"the runtime {spec.runtime.value} is not offered here"
        found.append(FieldError("runtime", message, lines.get(("runtime",), 0), "use python"))
    if spec.backend is BackendChoice.WASM:
        found.append(FieldError("backend", "the backend wasm is not offered here", lines.get(("backend",), 0), "use container"))
    if found:
        raise _not_available(found)


def _refuse_contradictions(spec: FunctionSpec, lines: dict[Path, int]) -> None:
    """Here and not in the contract, which also reads what was deployed before."""
    scale = spec.scale
    if scale.min_warm <= scale.max:
        return
    message = f"scale.min_warm is {scale.min_warm}, more than scale.max, which is {scale.max}"
    path: Path = ("scale", "min_warm")
    where = f"line {line}: " if (line := _line(lines, path)) else ""
    raise SpecInvalid(
        f"{where}{message}",
        errors=[
            FieldError("scale.min_warm", message, line, f"at most {scale.max}"),
            FieldError("scale.max", message, _line(lines, ("scale", "max")), f"at least {scale.min_warm}"),
        ],
    )


def _not_available(found: list[FieldError]) -> NotAvailable:
    names = ", ".join(error.field for error in found)
    return NotAvailable(f"not offered here: {names}", fix="; ".join(f"{e.field}: {e.hint}" for e in found), errors=found)


def _explain(error: ValidationError, given: dict[str, Any], lines: dict[Path, int]) -> SpecInvalid:
    found: list[FieldError] = []
    for problem in error.errors(include_url=False)[:_ERRORS_MAX]:
        path: Path = problem["loc"]
        line = _line(lines, path)
        field = ".".join(str(part)[:80] for part in path) or "spec"
        if problem["type"] == "extra_forbidden":
            found.append(FieldError(field, "there is no such key", line, _nearest(path)))
        else:
            message = str(problem["msg"]).removeprefix("Value error, ")
            found.append(FieldError(field, message, line, _quoting(problem)))
    first = found[0]
    where = f"line {first.line}: " if first.line else ""
    hint = f" ({first.hint})" if first.hint else ""
    return SpecInvalid(f"{where}{first.field}: {first.message}{hint}", errors=found)


def _quoting(problem: Any) -> str:
    if problem["type"] == "string_type" and isinstance(problem.get("input"), int | float):
        return "write the value in quotes"
    return ""


def _line(lines: dict[Path, int], path: Path) -> int:
    """The line of the nearest part that has one."""
    for length in range(len(path), 0, -1):
        found = lines.get(path[:length])
        if found is not None:
            return found
    return 0


def _nearest(path: Path) -> str:
    model = _model_at(path[:-1])
    if model is None:
        return ""
    known = [*model.model_fields, *(NOT_AVAILABLE if model is FunctionSpec else ())]
    close = difflib.get_close_matches(str(path[-1])[:80], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(model.model_fields)}"


def _model_at(path: Path) -> type[BaseModel] | None:
    model: type[BaseModel] = FunctionSpec
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            return None
        candidates = [field.annotation, *get_args(field.annotation)]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return None
        model = inner
    return model
