"""What a function's processes print: two pipes that the zygote and all its children share.

One call runs at a time, and nothing of it is left when the next begins, so whatever comes is of the call that runs.
"""

import os

READ_BYTES = 256 * 1024
#: How long output is let gather in its pipe after a read that emptied it, seconds: a chatty function wakes us rarely.
GATHER_S = 0.02
#: Reads in a row from one pipe, so that a flood does not keep us from everything else.
READS_MAX = 16
#: A pipe that held so much is being filled as fast as it is read: letting it gather would only hold its writer up.
FLOOD_BYTES = 32 * 1024


class Output:
    """`on_data(stream, data)` gets everything that is printed."""

    def __init__(self, loop, pipes, on_data):
        self._loop = loop
        self._streams = pipes
        self._on_data = on_data
        self._gathering = set()
        for fd in pipes:
            os.set_blocking(fd, False)
            self._watch(fd)

    def drain(self):
        """Take what has been printed so far."""
        for fd, stream in self._streams.items():
            self._read(fd, stream)

    def discard(self):
        """Before a call begins: what lies in a pipe that is not being watched now was printed by nobody's call."""
        for fd in list(self._gathering):
            self._read(fd, self._streams[fd])

    def _watch(self, fd):
        self._gathering.discard(fd)
        self._loop.reading(fd, lambda: self._readable(fd))

    def _readable(self, fd):
        emptied, size = self._read(fd, self._streams[fd])
        if emptied and size < FLOOD_BYTES:
            self._loop.reading(fd, None)
            self._gathering.add(fd)
            self._loop.later(GATHER_S, lambda: self._watch(fd))

    def _read(self, fd, stream):
        """Whether the pipe was emptied, and how much was in it."""
        size = 0
        for _ in range(READS_MAX):
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return True, size
            if not data:
                self._loop.reading(fd, None)  # every process that could print is gone
                return False, size
            size += len(data)
            self._on_data(stream, data)
        return False, size
