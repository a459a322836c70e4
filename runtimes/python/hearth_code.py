"""From an unpacked folder to a handler."""

import os
import sys

#: Folders inside a bundle that hold its dependencies.
DEPENDENCIES = ("vendor", "site-packages", "python")


def search_path(folder, current):
    """Where the function's imports are looked for: its own folder, its dependencies, the standard library."""
    here = os.path.dirname(os.path.abspath(__file__))
    dependencies = [f"{folder}/{name}" for name in DEPENDENCIES if os.path.isdir(f"{folder}/{name}")]
    return [folder, *dependencies, *(path for path in current if os.path.abspath(path or ".") != here)]


def find_handler(name):
    """`main:handle`, `pkg.mod:handle`, and Lambda's `main.handle`."""
    module_name, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    # The bundle's own folder is new to the import system: nothing it may remember about the path holds any more.
    sys.path_importer_cache.clear()
    __import__(module_name)
    handler = getattr(sys.modules[module_name], attribute)
    if not callable(handler):
        raise TypeError(f"{name} is not a function")
    return handler
