"""How the processes of a platform share their machine's cores."""

import contextlib
import os


def work_in_batches() -> None:
    """Wait for a free core rather than push aside whoever runs; processes started from here do the same.

    A call wakes five services and the broker several times. On a busy machine each of these would preempt another one, and
    every message would be handled alone, by a core that has just forgotten the code for it. A process that waits its turn
    finds several messages instead. Where a core is idle nothing changes.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a sandbox that forbids it: slower, and no more than that
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
