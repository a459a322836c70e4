"""Runtime images without a registry: a root made of Debian packages, finished inside a container, then our runtime files
on top. Images are named by the digest of what they are made of, so that one that is there is one that fits."""

import fcntl
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hearth_cli.errors import CommandError
from hearth_cli.local.engine_api import EngineApi

Progress = Callable[[str], None]

SUITE: Final = "bookworm"
RUNTIMES: Final = ("python",)

#: Images that stay when a new one is made: a runtime's own layer is 200 KB, a base 72 MB.
RUNTIMES_KEPT: Final = 20
BASES_KEPT: Final = 3

#: dpkg leaves these out while unpacking: nobody reads manuals inside a sandbox.
EXCLUDED: Final = tuple(f"path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale"))

#: Inside the container that finishes an image: no network, and no more rights than unpacking as root needs.
_HOST: Final = {
    "NetworkMode": "none",
    "CapDrop": ["ALL"],
    "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
    "SecurityOpt": ["no-new-privileges"],
    "LogConfig": {"Type": "none"},
    "PidsLimit": 64,
}


class ImageError(CommandError):
    """A runtime image could not be made."""

    code = "E_IMAGE"


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` did. `steps` are the names and seconds of what had to be done; empty when everything was there."""

    reference: str
    steps: tuple[tuple[str, float], ...]


def reference(root: Path, runtime: str = "python") -> str:
    """The name of the image that fits this checkout: `hearth-runtime-python:<digest>`."""
    return f"hearth-runtime-{runtime}:{_digest(_recipe(root, runtime) + _runtime_files(root, runtime))}"


def present(root: Path, runtime: str = "python", *, api: EngineApi | None = None) -> bool:
    return (api or EngineApi()).image(reference(root, runtime)) is not None


def build(
    root: Path, cache: Path, progress: Progress, *, runtime: str = "python", force: bool = False, api: EngineApi | None = None
) -> Built:
    """Make the runtime's image unless it is there. Two at once: the second waits for the first, then finds it done."""
    engine, wanted, steps = api or EngineApi(), reference(root, runtime), list[tuple[str, float]]()

    @contextmanager
    def step(name: str) -> Iterator[None]:
        progress(name)
        started = time.monotonic()
        yield
        steps.append((name, time.monotonic() - started))

    with _one_at_a_time(cache):
        if force or engine.image(wanted) is None:
            base = f"hearth-base-{runtime}:{_digest(_recipe(root, runtime))}"
            if engine.image(base) is None:
                tar = cache / f"{base.replace(':', '-')}.tar"
                if force or not tar.exists():
                    with step("fetching Debian packages for the runtime"):
                        _fetch_root(_packages(root, runtime), tar)
                with step("importing them into the engine"), tar.open("rb") as file:
                    engine.import_image(file, f"{base}-raw")
                with step("compiling the standard library"):
                    _finish(engine, f"{base}-raw", base, _command(root, "base"), b"", ["LABEL hearth.base=" + runtime])
                    engine.remove_image(f"{base}-raw")
            with step("adding the runtime's own files"):
                tar_bytes = _tar(root / "runtimes" / runtime, _runtime_files(root, runtime))
                _finish(engine, base, wanted, _command(root, "runtime"), tar_bytes, ["LABEL hearth.runtime=" + runtime])
            _forget_old(engine, runtime, keep=(wanted, base))
    return Built(wanted, tuple(steps))


def _finish(engine: EngineApi, base: str, made: str, command: list[str], stdin: bytes, changes: list[str]) -> None:
    config = {
        "Image": base, "Entrypoint": command, "Cmd": [], "User": "0:0", "WorkingDir": "/", "OpenStdin": True, "StdinOnce": True,
        "AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "HostConfig": _HOST, "Labels": {"hearth.build": made},
    }  # fmt: skip
    with engine.container(config) as container:
        status, printed = engine.run(container, stdin)
        if status:
            raise ImageError(f"preparing {made} ended with status {status}", detail=printed.decode(errors="replace"))
        # What the container was started with is no part of the image.
        plain = ['ENTRYPOINT ["/usr/bin/python3"]', "CMD []", "USER 65534:65534", "WORKDIR /"]
        engine.commit(container, made, [*plain, *changes])


def _command(root: Path, what: str) -> list[str]:
    script = (root / "deploy/images/prepare.py").read_text()
    return ["/usr/bin/python3", "-I", "-S", "-c", script, what]


def _fetch_root(packages: list[str], tar: Path) -> None:
    """Debian's packages, unpacked into one tar file."""
    if shutil.which("mmdebstrap") is None:
        raise ImageError("mmdebstrap, which makes the runtime image from Debian's packages, is missing", fix=_mmdebstrap_fix())
    unfinished = tar.with_suffix(".part")
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--format=tar", "--include=" + ",".join(packages)]
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    command += [f"--dpkgopt={line}" for line in EXCLUDED]
    command += [SUITE, str(unfinished), *mirrors()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        raise ImageError(
            "Debian's packages could not be fetched for the runtime image",
            fix="check that apt-get update works, then: ./hearth images build",
            detail=done.stderr[-2000:],
        )
    unfinished.rename(tar)


def _mmdebstrap_fix() -> str:
    if shutil.which("apt-get"):
        return "apt-get install -y mmdebstrap debian-archive-keyring"
    return "docker build -f deploy/images/python.Dockerfile -t " + "$(./hearth images name) ."


def mirrors(apt: Path = Path("/etc/apt")) -> list[str]:
    """Where this machine fetches this Debian release from, as lines that apt understands; none when it runs another
    release, so that the tool's own default holds."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    lines = [line.strip() for file in files if file.exists() for line in file.read_text().splitlines()]
    found = [line for line in lines if re.match(rf"deb\s.*\s{SUITE}(-updates|-security)?\s", line)]
    for file in sorted((apt / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            fields = {
                name.strip().lower(): value.split()
                for name, _, value in (line.partition(":") for line in stanza.splitlines() if line[:1].strip(" #"))
            }
            if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
                continue
            signed = f"[signed-by={fields['signed-by'][0]}] " if fields.get("signed-by") else ""
            for uri in fields.get("uris", []):
                for suite in fields.get("suites", []):
                    if re.fullmatch(rf"{SUITE}(-updates|-security)?", suite):
                        found.append(f"deb {signed}{uri} {suite} {' '.join(fields.get('components', ['main']))}")
    #: A release without its first suite is no release: then the default is the better guess.
    return found if any(re.search(rf"\s{SUITE}\s", line) for line in found) else []


def _recipe(root: Path, runtime: str) -> list[tuple[str, bytes]]:
    files = [root / f"deploy/images/{runtime}.packages", root / "deploy/images/prepare.py"]
    return [(file.name, file.read_bytes()) for file in files] + [("suite", SUITE.encode())]


def _packages(root: Path, runtime: str) -> list[str]:
    lines = (root / f"deploy/images/{runtime}.packages").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _runtime_files(root: Path, runtime: str) -> list[tuple[str, bytes]]:
    """What goes to /opt/hearth: the runtime's folder without tests, caches and notes."""
    folder = root / "runtimes" / runtime
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix not in (".pyc", ".md") and "tests" not in file.relative_to(folder).parts
    ]
    return [(str(file.relative_to(folder)), file.read_bytes()) for file in files]


def _digest(parts: list[tuple[str, bytes]]) -> str:
    total = hashlib.sha256()
    for name, data in parts:
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest()[:16]


def _tar(folder: Path, files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), (folder / name).stat().st_mode & 0o755
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _forget_old(engine: EngineApi, runtime: str, *, keep: tuple[str, ...]) -> None:
    """Images of earlier checkouts pile up otherwise. Other platforms may still use the newer ones: those stay, and cost
    little, since they share their base."""
    for label, left in ((f"hearth.runtime={runtime}", RUNTIMES_KEPT), (f"hearth.base={runtime}", BASES_KEPT)):
        images = sorted(engine.images(label), key=lambda image: -int(image.get("Created") or 0))
        for image in images[left:]:
            names = [name for name in image.get("RepoTags") or [] if name not in keep]
            if names and len(names) == len(image.get("RepoTags") or []):
                try:
                    engine.remove_image(names[0])
                except CommandError:
                    continue  # in use


@contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
