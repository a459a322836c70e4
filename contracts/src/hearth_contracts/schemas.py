"""JSON Schemas of everything that is sent or stored, and what may change in them without a new version.

A running platform is upgraded one process after the other, and records live on in the stores: what is written today is
read by yesterday's code and by next year's.
"""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from hearth_contracts import registry

Schema = dict[str, Any]

#: Words for people only.
_PROSE: Final = frozenset({"title", "description", "examples"})
#: Bounds that may become wider, and the way that is wider.
_UPPER: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_LOWER: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})


def models() -> dict[str, type[BaseModel]]:
    """Every model on the bus and in the buckets, by its label: `call.v1`, `control-answer.v1`, `function-head.v1`."""
    found: dict[str, type[BaseModel]] = {}
    for contract in registry.CONTRACTS:
        found[contract.label] = contract.model
        if contract.answer is not None:
            found[f"{contract.name}-answer.v{contract.version}"] = contract.answer
    found.update({f"{name}.v1": model for name, model in registry.STORED.items()})
    return found


def generate() -> dict[str, Schema]:
    """The schema of each label."""
    return {label: model.model_json_schema() for label, model in models().items()}


def breaks(old: Schema, new: Schema) -> list[str]:
    """What another release would stumble over; empty when only readers that never heard of it gain something.

    A default is part of the contract: messages are sent without the fields that hold their default.
    """
    return list(_compare("", old, new, old, new))


def _resolve(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found = root["$defs"][reference.rpartition("/")[2]]
    return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}


def _compare(path: str, old: Schema, new: Schema, old_root: Schema, new_root: Schema) -> Iterator[str]:
    old, new = _resolve(old, old_root), _resolve(new, new_root)
    where = path or "the message"
    before, after = old.get("properties", {}), new.get("properties", {})
    for name in before:
        at = f"{path}.{name}".strip(".")
        if name not in after:
            yield f"{at} is gone"
        else:
            yield from _compare(at, before[name], after[name], old_root, new_root)
    required_before, required_after = set(old.get("required", ())), set(new.get("required", ()))
    for name in sorted(required_after - required_before):
        at = f"{path}.{name}".strip(".")
        yield f"{at} became required" if name in before else f"{at} is new and required"
    for name in sorted((required_before - required_after) & set(after)):
        yield f"{path}.{name} may be left out now".lstrip(".")
    yield from (f"{where}: {change}" for change in _keywords(old, new))
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            yield from _compare(f"{where}[]", old[key], new[key], old_root, new_root)
    for key in ("anyOf", "prefixItems"):
        if key in old and key in new:
            if len(old[key]) != len(new[key]):
                yield f"{where}: another number of {key}"
            for number, (one, other) in enumerate(zip(old[key], new[key], strict=False)):
                yield from _compare(f"{where}({number})", one, other, old_root, new_root)


_STRUCTURE: Final = frozenset({"properties", "required", "$defs", "$ref", "items", "anyOf", "prefixItems"})


def _is_wider(key: str, before: Any, after: Any) -> bool:
    """Whether a bound was only moved out of the way."""
    if key not in _UPPER | _LOWER:
        return False
    if before is None or after is None:
        return after is None
    return bool(after >= before if key in _UPPER else after <= before)


def _keywords(old: Schema, new: Schema) -> Iterator[str]:
    for key in sorted((old.keys() | new.keys()) - _PROSE - _STRUCTURE):
        before, after = old.get(key), new.get(key)
        if before == after or (isinstance(before, dict) and isinstance(after, dict) and key == "additionalProperties"):
            continue
        if key == "default" and isinstance(before, dict) and isinstance(after, dict) and before.items() <= after.items():
            continue  # a field was added below, with a default of its own
        if key == "enum" and before is not None and after is not None:
            gone = [value for value in before if value not in after]
            if gone:
                yield f"{', '.join(map(str, gone))} may not be said any more"
        elif not _is_wider(key, before, after):
            yield f"{key} was {before!r}, is {after!r}"
    for key in ("items", "anyOf", "prefixItems"):
        if (key in old) != (key in new):
            yield f"{key} {'is gone' if key in old else 'is new'}"
