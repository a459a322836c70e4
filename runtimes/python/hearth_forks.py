"""What Python does in a new child, kept short: every page a child writes to costs it microseconds."""

import os
import sys

_threading_hooks = []


def watch_hooks():
    """From now on `threading` does not get its own hook, which takes longer than a whole call. It puts right what other
    threads may have held at the fork; where the zygote had one thread there were none, and there is nothing to put right."""
    register = os.register_at_fork

    def register_at_fork(**hooks):
        hook = hooks.get("after_in_child")
        if getattr(hook, "__module__", "") == "threading":
            _threading_hooks.append(hook)
        else:
            register(**hooks)

    if "threading" not in sys.modules:
        os.register_at_fork = register_at_fork


def in_child():
    """Run in every child right after its fork."""
    if _threading_hooks:
        threading = sys.modules["threading"]
        if len(threading._active) > 1:
            for hook in _threading_hooks:
                hook()
        else:
            threading._main_thread._native_id = os.getpid()
