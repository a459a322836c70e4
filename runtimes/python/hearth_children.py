"""The zygote and its children, as the supervisor sees them: it asks for children, and is told of their ends."""

import os
import struct
from _signal import SIGKILL
from _socket import MSG_DONTWAIT

import hearth_json
import hearth_processes as processes
from hearth_calls import Child, ending
from hearth_sockets import send_fds, socketpair

READ_BYTES = 256 * 1024

FORK = struct.Struct(">BI")
#: What the zygote tells: a child's token and its pid, 0 when there was no forking it.
FORKED = struct.Struct(">BII")
#: A child's token, its status, CPU in microseconds, peak memory in KiB.
ENDED = struct.Struct(">BIiQI")


class Zygote:
    """`on_forked(child)`, `on_ended(child)`, `on_loaded(answer, ok)` and `on_gone(why)` tell what has happened.

    Once it has imported a function it may say anything. What it has no right to say ends it.
    """

    def __init__(self, loop, pid, control, *, on_forked, on_ended, on_loaded, on_gone):
        self._loop = loop
        self.pid = pid
        self.children = {}
        """Every child that has not been seen to end, by token."""
        self.forking = 0
        """Children asked for that have not been told of."""
        self._control = control
        self._tokens = 0
        self._loaded = False
        self._on_forked, self._on_ended = on_forked, on_ended
        self._on_loaded, self._on_gone = on_loaded, on_gone
        loop.reading(control.fileno(), self._read)

    def load(self, spec_fd, code_fd):
        send_fds(self._control, b"L", spec_fd, code_fd)

    def fork(self):
        """Ask for a child. Raises `OSError` when the zygote is gone."""
        mine, its = socketpair()
        self._tokens += 1
        child = self.children[self._tokens] = Child(self._tokens, mine)
        self.forking += 1
        try:
            send_fds(self._control, FORK.pack(70, child.token), its.fileno())  # F
        finally:
            its.close()
        return child

    def kill_all(self):
        for pid in [self.pid, *(child.pid for child in self.children.values() if child.pid)]:
            processes.signal_group(pid, SIGKILL)

    def _read(self):
        try:
            message = self._control.recv(READ_BYTES, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._gone()
            return
        at = 0
        while at < len(message):
            kind = message[at]
            if kind == 80 and len(message) - at >= FORKED.size:  # P
                _, token, pid = FORKED.unpack_from(message, at)
                at += FORKED.size
                if not self._forked(token, pid):
                    self._break()
                    return
            elif kind == 68 and len(message) - at >= ENDED.size:  # D
                _, token, *ended = ENDED.unpack_from(message, at)
                at += ENDED.size
                self._ended(token, tuple(ended))
            else:
                if kind != 75 or not self._told_loaded(message[at + 1 :]):  # K
                    self._break()
                return

    def _told_loaded(self, answer):
        """False when that is no answer, or the second one."""
        try:
            ok = hearth_json.loads(answer)["ok"] is True
        except (ValueError, TypeError, LookupError, RecursionError):
            return False
        if self._loaded:
            return False
        self._loaded = True
        self._on_loaded(answer, ok)
        return True

    def _break(self):
        processes.signal_group(self.pid, SIGKILL)
        self._gone("broke the protocol")

    def _forked(self, token, pid):
        """False when nobody asked for it."""
        child = self.children.get(token)
        if child is None or child.pid or pid < 0:
            return False
        self.forking -= 1
        child.pid = pid
        if pid:
            self._on_forked(child)
        else:
            self._ended(token, (-1, 0, 0))
        return True

    def _ended(self, token, ended):
        child = self.children.pop(token, None)
        if child is not None:
            child.ended = ended
            self._on_ended(child)

    def _gone(self, why=None):
        self._loop.reading(self._control.fileno(), None)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            status = -1  # reaped among the orphans
        self.forking = 0
        self.kill_all()
        self._on_gone(why or ending(status))
        for token in list(self.children):
            self._ended(token, (SIGKILL, 0, 0))
