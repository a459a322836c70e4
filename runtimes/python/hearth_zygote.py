"""The zygote: takes the code, imports the function once, and forks a child whenever the supervisor asks for one.

It holds no link and no key. Once the code is imported it is as little to be trusted as the code.
"""

import gc
import os
import select
import struct
import sys
import time

import hearth_child
import hearth_code
import hearth_forks
import hearth_json
import hearth_landlock
import hearth_result
import hearth_unpack
from hearth_sockets import receive_fds, socket

PR_SET_DUMPABLE = 4
#: Of all processes in a sandbox the kernel takes one running the function first when memory runs out, not the supervisor.
OOM_SCORE = b"900"
#: How often to look for ended children where the kernel has no pidfd, seconds.
LOOK_EVERY_S = 0.005
#: Where the control socket lies, after 0, 1 and 2.
CONTROL = 3

FORK = struct.Struct(">BI")
FORKED = struct.Struct(">BII")
ENDED = struct.Struct(">BIiQI")


def start(control_fd, out, err, folders, libc):
    """Returns when the supervisor is gone."""
    try:
        _be_alone(control_fd, out, err)
        _prefer_for_oom(libc)
        control = socket(fileno=CONTROL)
        unpacker = hearth_unpack.Unpacker(folders.code, control)
        message, fds = receive_fds(control, 16)
        if message != b"L":
            return
        spec = hearth_json.loads(_read_all(fds[0]))
        handler = _load(control, spec, unpacker, fds[1], folders, libc)
        if handler is not None:
            _serve(control, hearth_child.Function(handler, spec, folders))
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        pass


def _be_alone(control_fd, out, err):
    """Hold the null device as 0, two pipes as 1 and 2, the control socket as 3, and nothing else."""
    null = os.open("/dev/null", os.O_RDONLY)
    high = [os.dup2(fd, 200 + at) for at, fd in enumerate((null, out, err, control_fd))]
    for at, fd in enumerate(high):
        os.dup2(fd, at, inheritable=at < CONTROL)
    os.closerange(CONTROL + 1, os.sysconf("SC_OPEN_MAX"))


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


def _load(control, spec, unpacker, code_fd, folders, libc):
    """Unpack, import, and find the handler. What goes wrong is told with the user's frames only."""
    began = time.monotonic()
    me, end = os.getpid(), os._exit
    sys.dont_write_bytecode = True
    hearth_child.prepare_output(libc)
    hearth_child.prepare_environment(spec, folders)
    hearth_forks.watch_hooks()
    try:
        size = unpacker.unpack(spec["code"], code_fd)
        unpacked = time.monotonic()
        hearth_landlock.confine(libc, folders.writable)
        sys.path[:] = hearth_code.search_path(folders.code, sys.path)
        handler = hearth_code.find_handler(spec["handler"])
        hearth_child.prepare_for(handler)
    except BaseException as error:
        control.send(b"K" + hearth_json.dumps({"ok": False, "error": hearth_result.describe(error)}))
        return None
    if os.getpid() != me:
        end(0)  # the import forked, and this is the copy: only the original is the zygote
    imported = time.monotonic()
    hearth_child.rehearse(spec, hearth_child.REHEARSALS, folders)
    gc.freeze()
    phases = {"unpack": (unpacked - began) * 1000, "import": (imported - unpacked) * 1000}
    control.send(b"K" + hearth_json.dumps({"ok": True, "phases": phases, "code_bytes": size}))
    return handler


def _serve(control, function):
    """Few objects and few calls in here: after a fork every page that is written to is copied in this process too."""
    poll = select.epoll()
    wait, add, remove = poll.poll, poll.register, poll.unregister
    poll_fd = poll.fileno()
    fork, pidfd_open, close = os.fork, os.pidfd_open, os.close
    add(CONTROL, 1)
    watched = {}
    unwatched = {}
    while True:
        told = b""
        for fd, _ in wait(LOOK_EVERY_S if unwatched else -1):
            if fd != CONTROL:
                token, pid = watched.pop(fd)
                remove(fd)
                close(fd)
                told += _ended(token, pid, 0)
                continue
            message, fds = receive_fds(control, 16)
            if not message:
                return
            token = FORK.unpack(message)[1]
            try:
                pid = fork()
            except OSError:
                pid = -1
            if not pid:
                try:
                    close(CONTROL)
                    close(poll_fd)
                    for pidfd in watched:
                        close(pidfd)
                    hearth_forks.in_child()
                    hearth_child.run(function, *fds)
                finally:
                    os._exit(0)
            close(*fds)
            told += FORKED.pack(80, token, max(pid, 0))  # P
            if pid > 0:
                try:
                    pidfd = pidfd_open(pid)
                except OSError:
                    unwatched[pid] = token
                else:
                    watched[pidfd] = (token, pid)
                    add(pidfd, 1)
        for pid in list(unwatched):
            ended = _ended(unwatched[pid], pid, os.WNOHANG)
            if ended:
                told += ended
                del unwatched[pid]
        if told:
            control.send(told)


def _ended(token, pid, options):
    """What is told of a child that has ended; nothing when it has not."""
    try:
        ended, status, usage = os.wait4(pid, options)
    except ChildProcessError:
        ended, status, usage = pid, 0, None  # code that was imported here has waited for it
    if not ended:
        return b""
    cpu_us = int((usage.ru_utime + usage.ru_stime) * 1e6) if usage else 0
    return ENDED.pack(68, token, status, cpu_us, usage.ru_maxrss if usage else 0)  # D
