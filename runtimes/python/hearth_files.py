"""Output files: what a function writes to `context.output(name)`, and what it leaves in its folder for outputs.

All of this runs in the function's own process, with the function's own rights: no file is read for it that it could not
have read itself.
"""

import _thread
import errno
import io
import os
import stat

import hearth_frames as frames
import hearth_json

#: Small writes gather to this much before they leave: the most that one frame may hold.
BUFFER_BYTES = frames.DATA_BYTES_MAX


class OutputRefused(OSError):
    """The platform does not take the output file."""


class Outputs:
    """The output files of one call."""

    def __init__(self, channel):
        self._channel = channel
        self._lock = _thread.allocate_lock()
        self._streams = 0
        self._files = []
        self._room = None
        self.bytes_max = None
        """What the platform allows all of them together, once the first is open."""

    def open(self, name, content_type=""):
        with self._lock:
            self._streams += 1
            stream = self._streams
        question = {"name": name, "content_type": content_type}
        answer = self._channel.ask(frames.OUTPUT_OPEN, hearth_json.dumps(question), stream)
        if not answer.get("ok"):
            raise OutputRefused(answer.get("error", "the platform does not take the output file"))
        with self._lock:
            if self.bytes_max is None:
                self.bytes_max = self._room = answer.get("bytes_max")
            file = Output(_Raw(self._channel, stream), name, self)
            self._files.append(file)
        return file

    def spend(self, size):
        """Whether so many bytes more are allowed, of all files together."""
        with self._lock:
            if self._room is None:
                return True
            if size > self._room:
                return False
            self._room -= size
            return True

    def close(self):
        for file in self._files:
            file.close()


class Output(io.BufferedWriter):
    """A file that leaves the sandbox while it is written. What does not fit the call's allowance is an OSError, and then
    the file is not kept."""

    def __init__(self, raw, name, outputs):
        super().__init__(raw, BUFFER_BYTES)
        self._name = name
        self._outputs = outputs

    name = property(lambda self: self._name)

    def write(self, data):
        if self.closed:
            raise ValueError("the output is closed")
        if isinstance(data, str):
            data = data.encode()
        size = memoryview(data).nbytes
        if self.raw.spoiled or not self._outputs.spend(size):
            self.raw.spoiled = True
            raise OSError(errno.EDQUOT, f"a call's output files may have {self._outputs.bytes_max} bytes together", self._name)
        return super().write(data)

    def seekable(self):
        return False


class _Raw(io.RawIOBase):
    """The way to the platform."""

    def __init__(self, channel, stream):
        self._channel = channel
        self._stream = stream
        self.spoiled = False
        """It is not whole, and must not look as if it were: the frame that ends a file is never sent."""

    def writable(self):
        return True

    def write(self, data):
        size = len(data)
        if not self.spoiled:
            self._channel.send_data(frames.OUTPUT, data, self._stream)
        return size

    def close(self):
        if not self.closed:
            super().close()
            if not self.spoiled:
                self._channel.send(frames.OUTPUT, b"", self._stream, frames.END)


def left_in(folder):
    """The names in the folder for outputs: mostly none, and then this is all that is done."""
    return sorted(os.listdir(folder))


def send_left(outputs, folder, names, warn):
    """Send the plain files among them. Anything else is never opened: a link could lead anywhere and a pipe keep us for ever."""
    for name in names:
        path = os.path.join(folder, name)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            warn(f"{path} is not a plain file, and was not kept")
            continue
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(source).st_mode):  # still
                _send(source, outputs.open(name))
        finally:
            os.close(source)


def _send(source, output):
    with output:
        while data := os.read(source, BUFFER_BYTES):
            output.write(data)
