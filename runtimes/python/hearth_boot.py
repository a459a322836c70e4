"""From a bare process to a supervisor with its zygote and its link.

The zygote is forked before the link exists and before its key arrives, so that nothing of either is in its memory.
"""

import fcntl
import os
import sys
import time

import hearth_zygote
from hearth_sockets import AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM, socket, socketpair

#: How long the executor may take to open its end, seconds. It does so right after the container has started.
CONNECT_S_MAX = 60.0
CONNECT_EVERY_S = 0.002

PR_SET_CHILD_SUBREAPER = 36
#: Descriptors of the supervisor live above this number, out of the way of 0, 1 and 2.
HIGH = 64


class Folders:
    """Where a function's code, scratch and outputs are, and which folders are emptied after a call."""

    def __init__(self, root=""):
        self.whole = not root
        """The sandbox is a container of its own."""
        self.code = root + "/code"
        self.scratch = root + "/tmp"
        self.output = root + "/output"
        self.emptied = [self.scratch, self.output] + ([] if root else ["/dev/shm"])
        self.writable = [self.scratch, self.output, "/dev", "/proc"]


def main(argv, libc):
    mode, _, rest = argv[0].partition(":")
    folders = Folders(argv[1] if mode == "fd" else "")
    # Orphans come to the supervisor, whatever the container's first process is: none can slip out of its sight.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _work_in_batches()
    if mode == "stdio":
        link_in, link_out = _take_stdio()
    elif mode == "fd":
        link_in = link_out = _move_high(int(rest))
    elif mode == "fast" and rest:
        link_in = link_out = None
    else:
        sys.exit(f"unknown mode {argv[0]!r}")
    zygote = _fork_zygote(folders, libc)
    # Only now: the zygote has no use for the supervisor's code, and pays for every page at each fork.
    import hearth_supervisor

    if mode == "fast":
        link_in = link_out = _connect(rest)
    hearth_supervisor.Supervisor(link_in, link_out, zygote, folders, keyed=mode == "stdio").run()


def _work_in_batches():
    """On a busy machine, wait for a core instead of pushing a service aside in the middle of its work."""
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:  # forbidden here: slower, and no more than that
        return


def _take_stdio():
    """The link moves to close-on-exec descriptors before any other process exists; 0 and 1 become the null device."""
    link_in, link_out = _move_high(0), _move_high(1)
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)
    return link_in, link_out


def _move_high(number):
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(number)
    return moved


def _connect(name):
    give_up = time.monotonic() + CONNECT_S_MAX
    while True:
        link = socket(AF_UNIX, SOCK_STREAM)
        try:
            link.connect("\0" + name)
        except (ConnectionRefusedError, FileNotFoundError):
            link.close()
            if time.monotonic() > give_up:
                sys.exit("no executor came to the link")
            time.sleep(CONNECT_EVERY_S)
        else:
            number = _move_high(os.dup(link.fileno()))
            link.close()
            return number


def _fork_zygote(folders, libc):
    mine, its = socketpair(AF_UNIX, SOCK_SEQPACKET)
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        hearth_zygote.start(its.fileno(), out_w, err_w, folders, libc)
        os._exit(0)
    its.close()
    os.close(out_w)
    os.close(err_w)
    return pid, mine, out_r, err_r
