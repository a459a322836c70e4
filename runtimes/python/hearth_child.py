"""A child: a process forked from the zygote that runs calls, one after the other, and speaks on its own socket."""

import builtins
import gc
import io
import json
import os
import resource
import signal
import socket
import sys
import time

import hearth_frames as frames
import hearth_result
from hearth_context import Channel, Context


#: The interpreter has settled on how to run a function after about this many runs.
WARM_UPS = 20


class Function:
    """What every child of a sandbox shares."""

    def __init__(self, handler, spec, folders, libc):
        self.handler = handler
        self.spec = spec
        self.folders = folders
        self.libc = libc


def prepare_output():
    """What is printed leaves the process at once, whatever bytes it is made of."""
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
        import asyncio  # noqa: F401, PLC0415


def warm_up(spec):
    """Go the way of a call once, before the fork: the interpreter then rewrites less of its code in every child."""
    mine, its = socket.socketpair()
    number, meta = 1, {
        "job": "", "attempt": 1, "deadline": None, "start": "cold", "content_type": "application/json",
        "traceparent": "", "http": None, "streamed": False, "size": 2,
    }  # fmt: skip
    function = Function(lambda event, context: {"ok": True}, spec, None, _NoLibc)
    frame = frames.encode(frames.CALL, frames.with_meta(meta, b"{}"), number)
    channel = Channel(its)
    for _ in range(WARM_UPS):
        mine.send(frame)
        _call(function, channel, *channel.receive())
        mine.recv(65536)
    mine.close()
    its.close()


class _NoLibc:
    @staticmethod
    def fflush(_):
        pass


def run(function, sock_fd, out, err):
    """Serve calls until the socket closes; one call only unless the function's processes are reused."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.setsid()
    sock = socket.socket(fileno=sock_fd)
    os.close(out)
    os.close(err)
    once = function.spec["isolation"] != "reuse"
    channel = Channel(sock)
    while True:
        frame = channel.receive()
        if frame is None:
            return
        _call(function, channel, *frame)
        if once:
            return
        os.chdir(function.folders.code)


def _call(function, channel, kind, _flags, number, payload):
    if kind != frames.CALL:
        raise frames.ProtocolError("a child that waits for a call got something else")
    cpu_before = _cpu_us()
    meta, body = frames.split_meta(payload)
    channel.call = number
    if meta["streamed"]:
        body = channel.receive_event(meta["size"])
    context = Context(function, meta, channel)
    result = hearth_result.of_call(function.handler, hearth_result.event(meta, body), context, channel, meta)
    if os.getpid() != channel.pid:
        os._exit(0)  # the function forked, and this is the copy: only the original answers
    context.close()
    function.libc.fflush(None)
    result.meta["cpu_us"] = _cpu_us() - cpu_before
    result.meta["rss_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    channel.send(frames.RESULT, frames.with_meta(result.meta, result.body))


def _cpu_us():
    below = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() // 1000 + int((below.ru_utime + below.ru_stime) * 1e6)
