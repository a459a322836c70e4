"""What is left of a call: processes that still run and files that still lie about."""

import os
import stat

#: Entries removed in place after a call. More than that goes to a process of its own, so that the link is never held up.
CLEAN_IN_PLACE_MAX = 64

#: A folder on a tmpfs is 20 bytes for each entry, and two entries are always there: one question instead of a listing.
EMPTY_TMPFS_BYTES = 40


#: The sandbox's own control group, versions 1 and 2.
TASK_COUNTS = ("/sys/fs/cgroup/pids/pids.current", "/sys/fs/cgroup/pids.current")


class Census:
    """How many threads there are, by the sandbox's control group. A process that is replaced by a copy of itself again and
    again is in no listing for long enough to be looked at; but it counts."""

    def __init__(self):
        self._fd = -1
        for path in TASK_COUNTS:
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError:
                continue
        if self._fd >= 0 and self.count() != threads():
            os.close(self._fd)  # it counts something else
            self._fd = -1

    def count(self):
        """None where it cannot be known."""
        return None if self._fd < 0 else int(os.pread(self._fd, 32, 0))


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def look(pid):
    """(parent, threads); the parent is 0 when the process is a zombie, which runs nothing any more but counts until it is
    collected. None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(1024)
    except OSError:
        return None
    # The command's name stands in parentheses and may hold anything, so the fields are counted from its end.
    fields = text[text.rindex(b")") + 2 :].split(None, 18)
    return 0 if fields[0] in (b"Z", b"X") else int(fields[1]), int(fields[17])


def threads():
    """Of all processes that can be seen."""
    return sum(found[1] for found in map(look, pids()) if found)


def leftovers(root, expected):
    """Processes below `root` that are not expected, and the threads of all. Zombies run nothing and are not left over."""
    _reap()  # only before the look: what is collected after it would be seen and not be there to be counted
    seen = {pid: found for pid in pids() if (found := look(pid))}
    left = []
    for pid, (parent, _) in seen.items():
        if pid in expected:
            continue
        above = parent
        while above > 1 and above != root:
            above = seen.get(above, (0,))[0]
        if above == root:
            left.append(pid)
    return left, sum(count for _, count in seen.values())


def _reap():
    """Collect orphans that have ended: they are children of whoever asked for them, the supervisor."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def signal_group(pid, number):
    """Signal a call's whole process group; the process alone while it has not yet made its group."""
    for send, target in ((os.killpg, pid), (os.kill, pid)):
        try:
            send(target, number)
        except (ProcessLookupError, PermissionError):
            continue
        return


def empty(folders):
    """Remove a little rubbish at once. False when there is more, or when it will not go."""
    budget = [CLEAN_IN_PLACE_MAX]
    try:
        return all(os.stat(folder).st_size == EMPTY_TMPFS_BYTES or _empty(folder, budget) for folder in folders)
    except OSError:
        return False


def _empty(folder, budget):
    with os.scandir(folder) as entries:
        for entry in entries:
            budget[0] -= 1
            if budget[0] < 0:
                return False
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
            elif _empty(entry.path, budget):
                os.rmdir(entry.path)
            else:
                return False
    return True


def empty_apart(folders):
    """Start a process that removes everything, however deep and whatever its modes. Answers its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.closerange(3, 1 << 16)
        for folder in folders:
            at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            _empty_below(at)
            os.close(at)
        status = 0
    finally:
        os._exit(status)


def _empty_below(top):
    """Depth first without recursion and without long paths: a function may nest folders deeper than either allows."""
    os.fchdir(top)
    depth = 0
    home = os.fstat(top).st_ino
    while True:
        below = None
        for name in os.listdir("."):
            mode = os.lstat(name).st_mode
            if not stat.S_ISDIR(mode):
                os.unlink(name)
                continue
            if mode & 0o700 != 0o700:
                os.chmod(name, 0o700)
            try:
                os.rmdir(name)
            except OSError:
                below = name
                break
        if below is not None:
            os.chdir(below)
            depth += 1
        elif depth == 0 or os.stat(".").st_ino == home:
            return
        else:
            os.chdir("..")
            depth -= 1
