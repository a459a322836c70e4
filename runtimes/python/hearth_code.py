"""A bundle becomes a folder, and a handler's name a function."""

import os
import stat
import sys
import tarfile
import zipfile

#: The same limits as at the gateway, which has checked the bundle first: here they keep a sandbox out of trouble.
UNPACKED_BYTES_MAX = 250 * 1024 * 1024
ENTRIES_MAX = 50_000
COPY_BYTES = 256 * 1024

#: Folders inside a bundle that hold its dependencies.
DEPENDENCIES = ("vendor", "site-packages", "python")


class BadBundle(Exception):
    """The code bundle cannot be unpacked."""


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
            try:
                os.chmod(folder, 0o555)
            except PermissionError:
                pass  # the mount point itself belongs to root

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
    with tarfile.open(fileobj=bundle, mode="r:gz") as archive:
        for entry in archive:
            if entry.isdir():
                if entry.name.strip("./"):
                    target.folder(entry.name)
            elif entry.isreg():
                target.file(entry.name, archive.extractfile(entry), executable=bool(entry.mode & 0o111))
            else:
                raise BadBundle(f"the bundle holds something that is not a file: {entry.name[:200]!r}")


def search_path(folder, current):
    """Where the function's imports are looked for: its own folder, its dependencies, the standard library."""
    here = os.path.dirname(os.path.abspath(__file__))
    dependencies = [f"{folder}/{name}" for name in DEPENDENCIES if os.path.isdir(f"{folder}/{name}")]
    return [folder, *dependencies, *(path for path in current if os.path.abspath(path or ".") != here)]


def find_handler(name):
    """`main:handle`, `pkg.mod:handle`, and Lambda's `main.handle`."""
    module_name, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    # The bundle's own folder is new to the import system: nothing it may remember about the path holds any more.
    sys.path_importer_cache.clear()
    __import__(module_name)
    handler = getattr(sys.modules[module_name], attribute)
    if not callable(handler):
        raise TypeError(f"{name} is not a function")
    return handler
