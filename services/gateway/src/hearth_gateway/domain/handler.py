"""Whether the handler a spec names is in the code, and parses."""

import ast
from typing import Final

from hearth_gateway.errors import FieldError, HandlerMissing, RequirementsNotVendored, SyntaxInvalid

#: A handler's file larger than this is generated code: it is not parsed here (parsing takes a hundred times its size).
PARSED_BYTES_MAX: Final = 256 * 1024


def split(handler: str) -> tuple[str, str]:
    """Module and function: `pkg.mod:handle`, or Lambda's `pkg.mod.handle`."""
    module, colon, function = handler.partition(":")
    if colon:
        return module, function
    module, _, function = handler.rpartition(".")
    return module, function


def candidates(handler: str) -> tuple[str, ...]:
    """The files the handler's module may be in."""
    path = split(handler)[0].replace(".", "/")
    return tuple(f"{root}{path}{end}" for root in ("", "vendor/") for end in (".py", "/__init__.py"))


def file_of(handler: str, files: set[str]) -> str:
    """The file that holds the handler, or `HandlerMissing`."""
    wanted = candidates(handler)
    for path in wanted:
        if path in files:
            return path
    deeper = [path for path in sorted(files) if path.endswith(f"/{wanted[0]}")]
    fix = f"add {wanted[0]}, or name another handler as module:function"
    if deeper:
        fix = f"pack the contents of the folder {deeper[0].removesuffix(wanted[0])!r}, not the folder itself"
    raise HandlerMissing(
        f"the handler {handler!r} needs the file {wanted[0]}",
        fix=fix, errors=[FieldError("handler", f"{wanted[0]} is not in the code")],
    )  # fmt: skip


def check_requirements(files: set[str], requirements: bytes | None) -> None:
    """A requirements.txt is a wish; only the vendored folder fulfils it, since nothing is fetched when code runs."""
    if requirements is None or any(path.startswith("vendor/") for path in files):
        return
    wanted = [line.split(b"#", 1)[0].strip() for line in requirements.splitlines()]
    if any(wanted):
        raise RequirementsNotVendored("requirements.txt names packages, but there is no folder vendor with them")


def check_source(path: str, source: bytes, function: str) -> None:
    """Parse the handler's file and look for the handler in it. Nothing of it is run."""
    if len(source) > PARSED_BYTES_MAX:
        return
    try:
        tree = compile(source, path, "exec", flags=ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        line = error.lineno or 1
        message = error.msg or "the file does not parse"
        raise SyntaxInvalid(f"{path}, line {line}: {message}", errors=[FieldError(path, message, line=line)]) from None
    except (ValueError, MemoryError, RecursionError, OverflowError, SystemError):
        raise SyntaxInvalid(f"{path} does not parse", errors=[FieldError(path, "not Python source", line=1)]) from None
    assert isinstance(tree, ast.Module)
    found = _names(tree)
    if function in found or "*" in found or "__getattr__" in found or b"globals()" in source:
        return
    functions = sorted(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    hint = f"it defines {', '.join(functions[:8])}" if functions else "it defines no function"
    raise HandlerMissing(
        f"{path} has no {function!r}; {hint}", fix=f"define {function}(event, context), or name another handler",
        errors=[FieldError("handler", f"{path} has no {function!r}", hint=hint)],
    )  # fmt: skip


def _names(tree: ast.Module) -> set[str]:
    """Every name the module may hold: anything bound anywhere outside of functions and classes."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            waiting.extend(ast.iter_child_nodes(node))
    return found
