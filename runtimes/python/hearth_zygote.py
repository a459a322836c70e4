"""The zygote: takes the code, imports the function once, and forks a child whenever the supervisor asks for one.

It holds no link and no key. Once the code is imported it is as little to be trusted as the code.
"""

import gc
import json
import os
import select
import socket
import struct
import sys
import time

import hearth_child
import hearth_code
import hearth_forks
import hearth_result
import hearth_unpack

PR_SET_DUMPABLE = 4
#: Of all processes in a sandbox the kernel takes one running the function first when memory runs out, not the supervisor.
OOM_SCORE = b"900"
#: How often to look for ended children where the kernel has no pidfd, seconds.
LOOK_EVERY_S = 0.005

FORK = struct.Struct(">BI")
FORKED = struct.Struct(">BII")
ENDED = struct.Struct(">BIiQI")


def start(control_fd, out, err, folders, libc):
    """Never returns while the sandbox lives."""
    try:
        _be_alone(control_fd, out, err)
        _prefer_for_oom(libc)
        control = socket.socket(fileno=3)
        unpacker = hearth_unpack.Unpacker(folders.code, control)
        kind, fds, _, _ = socket.recv_fds(control, 16, 2, socket.MSG_CMSG_CLOEXEC)
        if kind != b"L":
            return
        spec = json.loads(_read_all(fds[0]))
        handler = _load(control, spec, unpacker, fds[1], folders)
        if handler is not None:
            _serve(control, hearth_child.Function(handler, spec, folders, libc))
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        pass


def _be_alone(control_fd, out, err):
    """Hold the control socket as 3, the null device as 0, two pipes as 1 and 2, and nothing else."""
    null = os.open("/dev/null", os.O_RDONLY)
    high = [os.dup2(fd, 200 + at) for at, fd in enumerate((null, out, err, control_fd))]
    for at, fd in enumerate(high):
        os.dup2(fd, at, inheritable=at < 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))


def _prefer_for_oom(libc):
    # The file belongs to root while the process is unreadable; nothing of a function exists yet that could look.
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, OOM_SCORE)
        os.close(fd)
    except OSError:
        pass
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _read_all(fd):
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return file.read()


def _load(control, spec, unpacker, code_fd, folders):
    """Unpack, import, and find the handler. What goes wrong is told with the user's frames only."""
    began = time.monotonic()
    sys.dont_write_bytecode = True
    hearth_child.prepare_output()
    hearth_child.prepare_environment(spec, folders)
    hearth_forks.watch_hooks()
    try:
        size = unpacker.unpack(spec["code"], code_fd)
        unpacked = time.monotonic()
        sys.path[:] = hearth_code.search_path(folders.code, sys.path)
        handler = hearth_code.find_handler(spec["handler"])
        hearth_child.prepare_for(handler)
    except BaseException as error:  # noqa: BLE001 - whatever the import raised, sys.exit included, is its answer
        answer = {"ok": False, "error": hearth_result.describe(error)}
        control.send(b"K" + json.dumps(answer).encode())
        return None
    hearth_child.warm_up(spec)
    gc.collect()
    gc.freeze()
    ready = time.monotonic()
    phases = {"unpack": (unpacked - began) * 1000, "import": (ready - unpacked) * 1000}
    control.send(b"K" + json.dumps({"ok": True, "phases": phases, "code_bytes": size}).encode())
    return handler


def _serve(control, function):
    poll = select.epoll()
    poll.register(control.fileno(), select.EPOLLIN)
    watched = {}
    unwatched = {}
    while True:
        for fd, _ in poll.poll(LOOK_EVERY_S if unwatched else -1):
            if fd in watched:
                token, pid = watched.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                _tell_ended(control, token, pid, 0)
                continue
            message, fds, _, _ = socket.recv_fds(control, 16, 3, socket.MSG_CMSG_CLOEXEC)
            if not message:
                return
            _, token = FORK.unpack(message)
            try:
                pid = os.fork()
            except OSError:
                pid = -1
            if pid == 0:
                try:
                    poll.close()
                    control.close()
                    for pidfd in watched:
                        os.close(pidfd)
                    hearth_forks.in_child()
                    hearth_child.run(function, *fds)
                finally:
                    os._exit(0)
            for taken in fds:
                os.close(taken)
            control.send(FORKED.pack(ord("P"), token, max(pid, 0)))
            if pid > 0:
                try:
                    pidfd = os.pidfd_open(pid)
                except OSError:
                    unwatched[pid] = token
                else:
                    watched[pidfd] = (token, pid)
                    poll.register(pidfd, select.EPOLLIN)
        for pid in list(unwatched):
            if _tell_ended(control, unwatched[pid], pid, os.WNOHANG):
                del unwatched[pid]


def _tell_ended(control, token, pid, options):
    try:
        ended, status, usage = os.wait4(pid, options)
    except ChildProcessError:
        ended, status, usage = pid, 0, None  # code imported here has waited for it
    if not ended:
        return False
    cpu_us = int((usage.ru_utime + usage.ru_stime) * 1e6) if usage else 0
    control.send(ENDED.pack(ord("D"), token, status, cpu_us, usage.ru_maxrss if usage else 0))
    return True
