"""A bundle becomes a folder, in a process of its own.

What unpacking loads and what it leaves in memory ends with that process: every page the zygote has is paid for again at
each fork.
"""

import os
import stat

import hearth_json
from hearth_sockets import receive_fds, send_fds, socketpair

#: The same limits as at the gateway, which has checked the bundle first: here they keep a sandbox out of trouble.
UNPACKED_BYTES_MAX = 250 * 1024 * 1024
ENTRIES_MAX = 50_000
COPY_BYTES = 256 * 1024


class BadBundle(Exception):
    """The code bundle cannot be unpacked."""


class Unpacker:
    """Started while the sandbox has no code, so that it is ready when the code comes."""

    def __init__(self, folder, *not_its):
        self._mine, its = socketpair()
        self._pid = os.fork()
        if self._pid:
            its.close()
            return
        try:
            self._mine.close()
            for other in not_its:
                other.close()
            _serve(its, folder)
        finally:
            os._exit(0)

    def unpack(self, code, bundle_fd):
        """The unpacked size in bytes. Raises `BadBundle`."""
        send_fds(self._mine, hearth_json.dumps(code), bundle_fd)
        os.close(bundle_fd)
        answer = self._mine.recv(65536)
        self._mine.close()
        os.waitpid(self._pid, 0)
        answer = hearth_json.loads(answer) if answer else {"error": "the process that unpacks it ended: is it too large?"}
        if "error" in answer:
            raise BadBundle(answer["error"])
        return answer["size"]


def _serve(control, folder):
    import tarfile  # noqa: F401 - loaded here alone, before anyone waits
    import zipfile  # noqa: F401

    message, fds = receive_fds(control, 65536)
    if not message:
        return
    try:
        with os.fdopen(fds[0], "rb") as bundle:
            answer = {"size": unpack(bundle, hearth_json.loads(message), folder)}
    except BadBundle as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"error": f"the bundle cannot be unpacked: {error}"[:1000]}
    control.send(hearth_json.dumps(answer))


def unpack(bundle, code, folder):
    """Unpack into `folder`, then take away the permission to write there. Answers the unpacked size in bytes."""
    bundle.seek(0)
    kind = code["kind"]
    target = _Target(folder)
    if kind == "file":
        target.file(code["filename"], bundle, executable=False)
    elif kind == "zip":
        _unzip(bundle, target)
    elif kind == "tar.gz":
        _untar(bundle, target)
    else:
        raise BadBundle(f"a bundle of kind {kind!r}")
    target.seal()
    return target.size


class _Target:
    def __init__(self, folder):
        self._root = folder
        self._folders = [folder]
        self._made = {""}
        self._entries = 0
        self.size = 0

    def file(self, name, source, *, executable):
        above, _, leaf = self._path(name).rpartition("/")
        self._folder(above)
        mode = 0o555 if executable else 0o444
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(f"{self._root}/{above}/{leaf}", flags, mode), "wb", buffering=0) as out:
            while chunk := source.read(COPY_BYTES):
                self.size += len(chunk)
                if self.size > UNPACKED_BYTES_MAX:
                    raise BadBundle(f"the code is larger than {UNPACKED_BYTES_MAX >> 20} MiB unpacked")
                while chunk:
                    chunk = chunk[out.write(chunk) :]

    def folder(self, name):
        self._folder(self._path(name))

    def seal(self):
        for folder in self._folders:
            if os.stat(folder).st_uid == os.geteuid():  # the mount point itself may belong to root
                os.chmod(folder, 0o555)

    def _path(self, name):
        self._entries += 1
        if self._entries > ENTRIES_MAX:
            raise BadBundle(f"the code has more than {ENTRIES_MAX} files")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or not parts:
            raise BadBundle(f"the bundle names a file outside its folder: {name[:200]!r}")
        return "/".join(parts)

    def _folder(self, path):
        if path in self._made:
            return
        above = path.rpartition("/")[0]
        self._folder(above)
        os.mkdir(f"{self._root}/{path}", 0o755)
        self._made.add(path)
        self._folders.append(f"{self._root}/{path}")


def _unzip(bundle, target):
    import zipfile

    with zipfile.ZipFile(bundle) as archive:
        for entry in archive.infolist():
            mode = entry.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadBundle(f"the bundle holds something that is not a file: {entry.filename[:200]!r}")
            if entry.is_dir():
                target.folder(entry.filename)
                continue
            with archive.open(entry) as source:
                target.file(entry.filename, source, executable=bool(mode & 0o111))


def _untar(bundle, target):
    import tarfile

    with tarfile.open(fileobj=bundle, mode="r:gz") as archive:
        for entry in archive:
            if entry.isdir():
                if entry.name.strip("./"):
                    target.folder(entry.name)
            elif entry.isreg():
                target.file(entry.name, archive.extractfile(entry), executable=bool(entry.mode & 0o111))
            else:
                raise BadBundle(f"the bundle holds something that is not a file: {entry.name[:200]!r}")
