"""What a handler gets beside its event."""

import time

import hearth_files
import hearth_frames as frames
import hearth_json

#: An event that a function emits travels as one message.
EMIT_BYTES_MAX = 256 * 1024


_PLAIN = (bool, int, str)


class EmitRefused(Exception):
    """The platform did not take the event."""


class Context:
    """Everything is looked up when it is asked for: most calls ask for little."""

    def __init__(self, function, head, channel):
        self._spec = function.spec
        self._head = head
        self._channel = channel

    job_id = property(lambda self: self._head["job"])
    attempt = property(lambda self: self._head["attempt"])
    deadline = property(lambda self: self._head["deadline"], doc="Unix time at which the call is stopped, or None.")
    start = property(lambda self: self._head["start"], doc="`warm` or `cold`.")
    traceparent = property(lambda self: self._head["traceparent"])
    content_type = property(lambda self: self._head["content_type"])
    http = property(lambda self: self._head["http"], doc="Method, path, query and headers, when called as an endpoint.")
    function = property(lambda self: self._spec["function"])
    version = property(lambda self: self._spec["version"])
    tenant = property(lambda self: self._spec["tenant"])

    # The same under the names AWS Lambda gives them.
    aws_request_id = job_id
    log_stream_name = job_id
    function_name = function
    function_version = property(lambda self: str(self._spec["version"]))
    memory_limit_in_mb = property(lambda self: str(self._spec["memory_mb"]))
    log_group_name = property(lambda self: f"/hearth/{self.tenant}/{self.function}")
    invoked_function_arn = property(lambda self: f"arn:aws:lambda:hearth:{self.tenant}:function:{self.function}:{self.version}")
    client_context = None
    identity = None

    def remaining_ms(self):
        """Milliseconds until the call is stopped; None when it has no limit."""
        return None if self.deadline is None else max(0, int((self.deadline - time.time()) * 1000))

    def get_remaining_time_in_millis(self):
        remaining = self.remaining_ms()
        return 2**31 - 1 if remaining is None else remaining

    @property
    def log(self):
        return Log(self._channel)

    def emit(self, subject, data=None):
        """Publish an event; returns when the platform has it."""
        body, content_type = encode_value(data)
        if len(body) > EMIT_BYTES_MAX:
            raise EmitRefused(f"an event may have {EMIT_BYTES_MAX} bytes, this one has {len(body)}")
        head = {"subject": str(subject), "content_type": content_type}
        answer = self._channel.ask(frames.EMIT, frames.with_meta(head, body))
        if not answer.get("ok"):
            raise EmitRefused(answer.get("error", "the platform did not take the event"))

    def output(self, name, content_type=""):
        """A file to write to (bytes, or text as UTF-8), which streams out while it is written."""
        return self._files().open(str(name), str(content_type))

    def close(self):
        """Called when the handler has returned."""
        outputs = self.__dict__.get("_outputs")
        if outputs is not None:
            outputs.close()

    def send_left(self, folder):
        """Called when it has succeeded: what it simply left in its folder for outputs goes the same way."""
        names = hearth_files.left_in(folder)
        if names:
            hearth_files.send_left(self._files(), folder, names, self.log.warning)

    def _files(self):
        # In one step: two threads that open their first file at once must not number them alike.
        return self.__dict__.setdefault("_outputs", hearth_files.Outputs(self._channel))


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
        try:
            data = hearth_json.dumps(line)
        except (TypeError, ValueError, RecursionError):
            data = hearth_json.dumps({key: value if type(value) in _PLAIN else str(value) for key, value in line.items()})
        self._channel.send_data(frames.LOG, data + b"\n")


def encode_value(value):
    """(bytes, content type) of anything JSON can hold, text or bytes."""
    if isinstance(value, str):
        return value.encode(), "text/plain; charset=utf-8"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), "application/octet-stream"
    return hearth_json.dumps(value), "application/json"
