"""The Docker engine's HTTP API over its socket, as far as making images and tidying up need it. Standard library only:
the engine's own command line need not be installed."""

import contextlib
import http.client
import io
import json
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

from hearth_cli.errors import CommandError

DEFAULT_SOCKET = "/var/run/docker.sock"

#: Seconds for a question. Imports and commits move hundreds of megabytes on slow disks.
ASK_S = 10.0
MAKE_S = 300.0


class EngineError(CommandError):
    """The container engine refused."""

    code = "E_ENGINE"

    def __init__(self, message: str, *, status: int = 0, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.status = status


def socket_path() -> str:
    """Where the engine listens: `DOCKER_HOST` when it names a socket, else the usual place."""
    told = os.environ.get("DOCKER_HOST", "")
    return told.removeprefix("unix://") if told.startswith("unix://") else DEFAULT_SOCKET


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("engine", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class EngineApi:
    """Questions to one engine, each on a connection of its own. Raises `EngineError`, or `OSError` when nobody answers."""

    def __init__(self, path: str = "") -> None:
        self.path = path or socket_path()

    def version(self) -> dict[str, Any]:
        return self._json("GET", "/version")

    def info(self) -> dict[str, Any]:
        return self._json("GET", "/info")

    def image(self, reference: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None when it has none of that name."""
        try:
            return self._json("GET", f"/images/{quote(reference, safe='')}/json")
        except EngineError as error:
            if error.status == 404:
                return None
            raise

    def images(self, label: str) -> list[dict[str, Any]]:
        return self._json("GET", "/images/json?" + urlencode({"filters": json.dumps({"label": [label]})}))

    def remove_image(self, reference: str) -> None:
        self._json("DELETE", f"/images/{quote(reference, safe='')}")

    def import_image(self, tar: BinaryIO, reference: str) -> None:
        """Make an image of a whole root, as `docker import` does."""
        name, _, tag = reference.rpartition(":")
        query = urlencode({"fromSrc": "-", "repo": name, "tag": tag})
        self._json("POST", f"/images/create?{query}", body=tar, headers={"Content-Type": "application/x-tar"}, timeout_s=MAKE_S)

    def containers(self, labels: Iterable[str]) -> list[dict[str, Any]]:
        filters = json.dumps({"label": list(labels)})
        return self._json("GET", "/containers/json?" + urlencode({"all": "1", "filters": filters}))

    def remove_container(self, container: str) -> None:
        """Kill and remove; already gone, or going, is fine."""
        try:
            self._json("DELETE", f"/containers/{quote(container)}?force=1&v=1", timeout_s=MAKE_S)
        except EngineError as error:
            if error.status not in (404, 409):
                raise

    @contextlib.contextmanager
    def container(self, config: Mapping[str, Any]) -> Iterator[str]:
        """A container, made but not started, and removed at the end."""
        made: str = self._json("POST", "/containers/create", body=json.dumps(config).encode(), timeout_s=MAKE_S)["Id"]
        try:
            yield made
        finally:
            self.remove_container(made)

    def run(self, container: str, stdin: bytes) -> tuple[int, bytes]:
        """Start it, feed it, wait for its end: exit status and everything it printed."""
        connection = _Connection(self.path, MAKE_S)
        connection.request(
            "POST",
            f"/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1",
            headers={"Connection": "Upgrade", "Upgrade": "tcp"},
        )
        stream = connection.sock
        head = b""
        while b"\r\n\r\n" not in head:
            piece = stream.recv(1)
            if not piece:
                raise EngineError("the engine closed a container's stream while it was attached")
            head += piece
        self._json("POST", f"/containers/{container}/start", timeout_s=MAKE_S)
        try:
            stream.sendall(stdin)
            stream.shutdown(socket.SHUT_WR)
            printed = _demultiplex(stream)
        finally:
            connection.close()
        status: int = self._json("POST", f"/containers/{container}/wait", timeout_s=MAKE_S)["StatusCode"]
        return status, printed

    def commit(self, container: str, reference: str, changes: Iterable[str]) -> None:
        """Make an image of a stopped container's files; `changes` in the words of a Dockerfile."""
        name, _, tag = reference.rpartition(":")
        query = urlencode([("container", container), ("repo", name), ("tag", tag), *(("changes", line) for line in changes)])
        self._json("POST", f"/commit?{query}", body=b"{}", timeout_s=MAKE_S)

    def _json(
        self,
        method: str,
        path: str,
        *,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = ASK_S,
    ) -> Any:
        connection = _Connection(self.path, timeout_s)
        try:
            connection.request(
                method, path, body=body, headers={"Content-Type": "application/json", **(headers or {})},
                encode_chunked=isinstance(body, io.IOBase),
            )  # fmt: skip
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise EngineError(_message(text) or f"{method} {path}: {response.status}", status=response.status)
        return _last(text)


def _last(text: bytes) -> Any:
    """The answer; of a stream of progress reports the last one, which carries the error when there was one."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    try:
        answer = json.loads(text)
    except ValueError:
        answer = json.loads(lines[-1])
    if isinstance(answer, dict) and "error" in answer:
        raise EngineError(str(answer["error"]))
    return answer


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.decode(errors="replace").strip()


def _demultiplex(stream: socket.socket) -> bytes:
    """What a container printed on both streams, in order. The engine frames it: 8 bytes, the last four the size."""
    printed = bytearray()
    with stream.makefile("rb") as file:
        while len(head := file.read(8)) == 8:
            printed += file.read(struct.unpack(">I", head[4:])[0])
    return bytes(printed)
