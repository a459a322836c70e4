"""A child: a process forked from the zygote that runs calls, one after the other, and speaks on its own socket.

What it does between its fork and its result is kept short, and is rehearsed while it waits: the first time a process
touches a page since its fork costs microseconds, and a call's way through the interpreter touches hundreds.
"""

import builtins
import ctypes
import io
import os
import resource
import sys
import time

import hearth_frames as frames
import hearth_result
from hearth_channel import Channel
from hearth_context import Context

#: The interpreter has settled on how to run a piece of code after about this many runs.
REHEARSALS = 16

#: C's "not buffered".
_IONBF = 2

_REHEARSED_HEAD = {
    "job": "",
    "attempt": 1,
    "deadline": None,
    "start": "cold",
    "content_type": "application/json",
    "traceparent": "",
    "http": None,
    "streamed": False,
    "size": 2,
}
_REHEARSED = frames.encode(frames.CALL, frames.with_meta(_REHEARSED_HEAD, b"{}"), 1)


class Function:
    """What every child of a sandbox shares."""

    def __init__(self, handler, spec, folders):
        self.handler = handler
        self.spec = spec
        self.folders = folders
        self.once = spec["isolation"] != "reuse"


def prepare_output(libc):
    """What is printed leaves the process at once, whatever bytes it is made of and in whatever language it is printed."""
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IONBF, 0)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(fd, "w", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # Python's own `site` is not loaded, and these two are all that programs miss of it.
    builtins.exit = builtins.quit = sys.exit


def prepare_environment(spec, folders):
    name, version = spec["function"], str(spec["version"])
    os.environ.clear()
    os.environ.update(
        PATH="/usr/local/bin:/usr/bin:/bin",
        HOME=folders.scratch,
        TMPDIR=folders.scratch,
        LANG="C.UTF-8",
        TZ=":UTC",
        HEARTH_FUNCTION=name,
        HEARTH_VERSION=version,
        HEARTH_TENANT=spec["tenant"],
        AWS_LAMBDA_FUNCTION_NAME=name,
        AWS_LAMBDA_FUNCTION_VERSION=version,
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE=str(spec["memory_mb"]),
        LAMBDA_TASK_ROOT=folders.code,
        _HANDLER=spec["handler"],
    )
    os.environ.update(spec.get("env", {}))
    sys.argv = [folders.code]
    os.chdir(folders.code)


def prepare_for(handler):
    """Load before the fork what every call would load after it."""
    code = getattr(handler, "__code__", None)
    if code is not None and code.co_flags & (0x80 | 0x200):  # a coroutine or an asynchronous generator
        import asyncio  # noqa: F401


def rehearse(spec, times, folders):
    """Go the way of a call, with a handler that does nothing and a frame that came from nowhere."""
    function = Function(_do_nothing, spec, folders)
    channel = Channel(-1)
    for _ in range(times):
        channel.unread(_REHEARSED)
        frames.encode(frames.RESULT, _call(function, channel, *channel.receive()), 1)


def _do_nothing(event, context):
    return {"ok": True}


def run(function, sock):
    """Serve calls until the socket closes; one call only unless the function's processes are reused."""
    os.setsid()
    channel = Channel(sock)
    if function.once:
        rehearse(function.spec, 1, function.folders)
    while True:
        frame = channel.receive()
        if frame is None:
            return
        channel.send(frames.RESULT, _call(function, channel, *frame))
        if function.once:
            return
        os.chdir(function.folders.code)


def _call(function, channel, _kind, _flags, number, payload):
    """The payload of the call's result."""
    cpu_before = _cpu_us()
    head, body = frames.split_meta(payload)
    channel.call = number
    if head["streamed"]:
        body = channel.receive_event()
    context = Context(function, head, channel)
    event = hearth_result.event(head["content_type"], body)
    result = hearth_result.of_call(function.handler, event, context, channel, http=head["http"] is not None)
    if os.getpid() != channel.pid:
        os._exit(0)  # the function forked, and this is the copy: only the original answers
    result = hearth_result.with_files(result, context, function.folders.output)
    return result.payload(_cpu_us() - cpu_before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _cpu_us():
    below = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() // 1000 + int((below.ru_utime + below.ru_stime) * 1e6)
