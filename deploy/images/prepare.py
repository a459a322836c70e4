"""Finishes a runtime image from inside, as root, before any function runs in it.

    python3 -I -S prepare.py base              folders, users, no set-user-id bits, compiled standard library
    python3 -I -S prepare.py runtime < tar     what is on stdin goes to /opt/hearth, compiled

The root is read-only ever after, so everything must be compiled now: a start without compiled files costs ten times as much.
"""

import compileall
import glob
import os
import py_compile
import shutil
import stat
import sys
import tarfile

#: Mount points of the writable folders. A mount takes over the mode of the folder beneath it in some engines.
FOLDERS = {"/code": 0o700, "/output": 0o700, "/tmp": 0o1777, "/opt/hearth": 0o755}

#: Never used by a function, and only something to look for holes in.
UNUSED = (
    "/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/locale", "/usr/share/lintian", "/usr/share/bug",
    "/usr/share/doc-base", "/usr/share/menu", "/usr/share/perl5", "/usr/share/debconf", "/usr/share/gcc", "/usr/share/gdb",
    "/var/cache", "/var/lib/apt", "/var/lib/dpkg", "/var/log", "/usr/lib/dpkg", "/usr/lib/apt", "/usr/bin/dpkg*", "/usr/bin/apt*",
    "/usr/bin/debconf*", "/usr/sbin/*", "/boot", "/media", "/srv", "/usr/lib/python3*/test", "/usr/lib/python3*/idlelib",
    "/usr/lib/python3*/lib2to3", "/usr/lib/python3*/ensurepip", "/usr/lib/python3*/turtledemo", "/usr/lib/python3*/pydoc_data",
)  # fmt: skip

PASSWD = "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


def base() -> None:
    for pattern in UNUSED:
        for path in glob.glob(pattern):
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    for path, mode in FOLDERS.items():
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
    write("/etc/passwd", PASSWD)
    write("/etc/group", GROUP)
    write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    if not os.path.lexists("/usr/bin/sh"):
        os.symlink("dash", "/usr/bin/sh")
    if not os.path.lexists("/etc/localtime"):
        os.symlink("/usr/share/zoneinfo/Etc/UTC", "/etc/localtime")
    drop_set_user_id()
    compile_below(*glob.glob("/usr/lib/python3*"))


def drop_set_user_id() -> None:
    for folder, _, files in os.walk("/usr"):
        for name in files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(path, stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))


def runtime() -> None:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        for member in tar:
            member.uid = member.gid = 0
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            tar.extract(member, "/opt/hearth")
    compile_below("/opt/hearth")


def compile_below(*folders: str) -> None:
    """Unchecked: nothing may change any more, so nothing need be compared at each import."""
    for folder in folders:
        done = compileall.compile_dir(
            folder, quiet=1, workers=1, force=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        if not done:
            sys.exit(f"{folder} did not compile")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    {"base": base, "runtime": runtime}[sys.argv[1]]()
