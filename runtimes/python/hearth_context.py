"""What a handler gets beside its event, and the socket behind it."""

import _thread
import json
import os
import time

import hearth_frames as frames

RECEIVE_BYTES = 256 * 1024
#: An event a function emits travels as one message.
EMIT_BYTES_MAX = 256 * 1024


class EmitRefused(Exception):
    """The platform did not take the event."""


class OutputRefused(Exception):
    """The platform does not take the output file."""


class Channel:
    """A child's socket. Frames go out whole; an answer is waited for by whoever asked, one at a time."""

    def __init__(self, sock):
        self._sock = sock
        self._decoder = frames.Decoder()
        self._received = []
        self._lock = _thread.allocate_lock()
        self.pid = os.getpid()
        self.call = 0

    def receive(self):
        while not self._received:
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                return None
            for kind, flags, _, call, payload in self._decoder.feed(data):
                self._received.append((kind, flags, call, payload))
        return self._received.pop(0)

    def receive_event(self, size):
        body = bytearray()
        while True:
            frame = self.receive()
            if frame is None:
                os._exit(0)
            body += frame[3]
            if frame[1] & frames.END:
                return bytes(body)

    def send(self, kind, payload=b"", stream=0, flags=0):
        if os.getpid() != self.pid:
            raise OSError("only the process that was called may answer")
        with self._lock:
            self._sock.sendall(frames.encode(kind, payload, self.call, stream, flags))

    def send_data(self, kind, data, stream=0):
        view = memoryview(data)
        for at in range(0, len(view), frames.DATA_BYTES_MAX):
            self.send(kind, bytes(view[at : at + frames.DATA_BYTES_MAX]), stream)

    def ask(self, kind, payload, stream=0):
        """Send, then wait for the answer."""
        if os.getpid() != self.pid:
            raise OSError("only the process that was called may ask")
        with self._lock:
            self._sock.sendall(frames.encode(kind, payload, self.call, stream))
            frame = self.receive()
        if frame is None:
            os._exit(0)
        return json.loads(frame[3] or b"{}")


class Log:
    """`context.log("text", key=value)`, and the usual levels by name."""

    def __init__(self, channel):
        self._channel = channel

    def __call__(self, message, /, **fields):
        self._write("info", message, fields)

    def debug(self, message, /, **fields):
        self._write("debug", message, fields)

    def info(self, message, /, **fields):
        self._write("info", message, fields)

    def warning(self, message, /, **fields):
        self._write("warning", message, fields)

    def error(self, message, /, **fields):
        self._write("error", message, fields)

    def _write(self, level, message, fields):
        line = {"time": time.time(), "level": level, "message": str(message), **fields}
        data = json.dumps(line, default=str).encode() + b"\n"
        self._channel.send(frames.LOG, data[: frames.DATA_BYTES_MAX])


class Output:
    """A file that leaves the sandbox while it is written."""

    def __init__(self, channel, stream, name):
        self._channel = channel
        self._stream = stream
        self.name = name
        self.closed = False

    def write(self, data):
        if self.closed:
            raise ValueError("the output is closed")
        data = data.encode() if isinstance(data, str) else bytes(data)
        self._channel.send_data(frames.OUTPUT, data, self._stream)
        return len(data)

    def close(self):
        if not self.closed:
            self.closed = True
            self._channel.send(frames.OUTPUT, b"", self._stream, frames.END)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Identity:
    cognito_identity_id = None
    cognito_identity_pool_id = None


class Context:
    """The same names as `docs/` describes, and what AWS Lambda's context has under its own."""

    def __init__(self, function, meta, channel):
        spec = function.spec
        self.job_id = meta["job"]
        self.attempt = meta["attempt"]
        self.deadline = meta["deadline"]
        self.start = meta["start"]
        self.traceparent = meta["traceparent"]
        self.http = meta["http"]
        self.content_type = meta["content_type"]
        self.function = spec["function"]
        self.version = spec["version"]
        self.tenant = spec["tenant"]
        self.log = Log(channel)

        self.aws_request_id = self.job_id
        self.function_name = self.function
        self.function_version = str(self.version)
        self.memory_limit_in_mb = str(spec["memory_mb"])
        self.invoked_function_arn = f"arn:aws:lambda:hearth:{self.tenant}:function:{self.function}:{self.version}"
        self.log_group_name = f"/hearth/{self.tenant}/{self.function}"
        self.log_stream_name = self.job_id
        self.client_context = None
        self.identity = _Identity()

        self._channel = channel
        self._outputs = []

    def remaining_ms(self):
        """Milliseconds until the call is stopped; None when it has no limit."""
        return None if self.deadline is None else max(0, int((self.deadline - time.time()) * 1000))

    def get_remaining_time_in_millis(self):
        remaining = self.remaining_ms()
        return 2**31 - 1 if remaining is None else remaining

    def emit(self, subject, data=None):
        """Publish an event; returns when the platform has it."""
        body, content_type = encode_value(data)
        if len(body) > EMIT_BYTES_MAX:
            raise EmitRefused(f"an event may have {EMIT_BYTES_MAX} bytes, this one has {len(body)}")
        head = {"subject": str(subject), "content_type": content_type}
        answer = self._channel.ask(frames.EMIT, frames.with_meta(head, body))
        if not answer.get("ok"):
            raise EmitRefused(answer.get("error", "the platform did not take the event"))

    def output(self, name):
        """A file to write to, which streams out while it is written."""
        stream = len(self._outputs) + 1
        answer = self._channel.ask(frames.OUTPUT_OPEN, json.dumps({"name": str(name)}).encode(), stream)
        if not answer.get("ok"):
            raise OutputRefused(answer.get("error", "the platform does not take the output file"))
        output = Output(self._channel, stream, str(name))
        self._outputs.append(output)
        return output

    def close(self):
        for output in self._outputs:
            output.close()


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def encode_value(value):
    """(bytes, content type) of anything JSON can hold, text or bytes."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), "application/octet-stream"
    if isinstance(value, str):
        return value.encode(), "text/plain; charset=utf-8"
    text = _ENCODER.encode(value)
    try:
        return text.encode(), "application/json"
    except UnicodeEncodeError:
        return _ASCII_ENCODER.encode(value).encode(), "application/json"
