"""Named places where a test may end this process as a crash would: `HEARTH_FAILPOINT=exec.after_exit`. Off unless set."""

import os
import signal
from typing import Final

#: The function has ended, nothing of it is published.
AFTER_EXIT: Final = "exec.after_exit"
#: The caller is answered, nothing is recorded. (The answer is on the wire: one turn of the loop has passed.)
AFTER_REPLY: Final = "exec.after_reply"
#: The record or outcome is acknowledged, the run is not.
BEFORE_ACK: Final = "exec.before_ack"
#: The run is accepted, its function has not started.
AFTER_ACCEPT: Final = "exec.after_accept"

NAMES: Final = frozenset({AFTER_EXIT, AFTER_REPLY, BEFORE_ACK, AFTER_ACCEPT})


class Failpoints:
    """The armed ones of this process."""

    def __init__(self, names: str = "") -> None:
        self._armed = frozenset(part for part in names.split(",") if part)

    @property
    def armed(self) -> bool:
        return bool(self._armed)

    def hit(self, name: str) -> None:
        if self._armed and name in self._armed:
            os.kill(os.getpid(), signal.SIGKILL)
