"""What the supervisor keeps of a call and of the process that runs it."""

import _signal
import os

import hearth_frames as frames

#: What one call may log, all streams together. The rest is read and thrown away.
LOG_BYTES_MAX = 1024 * 1024

SIGNALS = {number: name for name, number in vars(_signal).items() if name.startswith("SIG") and name.isalnum()}


class Child:
    """A process that waits for a call, or runs one. It has a socket before it exists, and frames may be sent at once."""

    def __init__(self, token, sock):
        self.token = token
        self.sock = sock
        self.fd = sock.fileno()
        self.pid = 0
        """0 until the zygote has told it."""
        self.call = None
        self.incoming = b""
        self.outgoing = b""
        self.event_bytes = 0
        """Bytes of an event that wait in `outgoing`: credit is given back when they are gone."""
        self.paused = False
        """It has sent more than the executor has given credit for, and is not read."""
        self.ended = None
        """(status, CPU in microseconds, peak memory in KiB) once it has ended."""
        self.closed = False
        """Nothing more is read from it or written to it."""


class Call:
    def __init__(self, number):
        self.number = number
        self.child = None
        self.final = None
        """The frame with its result, once it is known."""
        self.streamed = False
        """Bulk data has gone out for it, which its result must not overtake."""
        self.emits = 0
        self.stopping = False
        self.grace_s = 1.0
        self._credit = {}
        self._logged = 0
        self._log = []

    def credit(self, kind, stream):
        return self._credit.get((kind, stream), frames.WINDOW_BYTES)

    def add_credit(self, kind, stream, size):
        self._credit[kind, stream] = self.credit(kind, stream) + size

    def log(self, stream, data):
        """Keep what the cap allows. Answers the frame that says so when the cap is reached, else None."""
        if self._logged > LOG_BYTES_MAX or not data:
            return None
        room = LOG_BYTES_MAX - self._logged
        self._logged += len(data)
        if room:
            self._log.append((stream, data[:room]))
        if len(data) > room:
            return frames.encode(frames.LOG, b"", self.number, stream, frames.TRUNCATED)
        return None

    def take_log(self):
        """Frames of the log as far as credit allows."""
        taken = []
        while self._log:
            stream, data = self._log[0]
            part = data[: min(self.credit(frames.LOG, stream), frames.DATA_BYTES_MAX)]
            if not part:
                break
            self.add_credit(frames.LOG, stream, -len(part))
            taken.append(frames.encode(frames.LOG, part, self.number, stream))
            if len(part) < len(data):
                self._log[0] = (stream, data[len(part) :])
            else:
                self._log.pop(0)
        return taken

    @property
    def log_is_out(self):
        return not self._log


def failure(call, kind, message, ended=None):
    """The result of a call that could not tell one itself."""
    status, cpu_us, rss_kb = ended or (0, 0, 0)
    meta = {
        "reason": "error",
        "error": {"type": kind, "message": message, "traceback": ""},
        "signal": os.WTERMSIG(status) if status >= 0 and os.WIFSIGNALED(status) else 0,
        "cpu_us": cpu_us,
        "rss_kb": rss_kb,
    }
    return frames.encode(frames.RESULT, frames.with_meta(meta), call.number)


def ending(status):
    """How a process ended, in words."""
    if status < 0:
        return "could not be started"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by {SIGNALS.get(number, f'signal {number}')}"
    return f"exited with status {os.WEXITSTATUS(status)} before it answered"
