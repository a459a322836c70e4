"""The gateway's HTTP API, as commands use it. The standard library's client: commands start fast."""

import hashlib
import http.client
import json
import secrets
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from hearth_cli.errors import CommandError, NotRunning, Refused
from hearth_cli.local.data_dir import DataDir, is_locked, read_json

CONNECT_S_MAX: Final = 10.0
#: A file is taken in pieces of this many bytes.
PIECE_BYTES: Final = 256 * 1024
#: What mends a refusal from a command line; the gateway itself speaks to whoever uses its HTTP API.
_FIXES: Final = {
    "E_FUNCTION_NOT_FOUND": "./hearth functions   names those that are there",
    "E_FORBIDDEN": "--key with an admin key",
    "E_JOB_NOT_FOUND": "./hearth logs FUNCTION   names its latest calls",
    "E_KEY_NOT_FOUND": "./hearth keys list",
    "E_NO_BROKER": "./hearth status",
    "E_NO_CAPACITY": "./hearth doctor",
    "E_OUTPUT_NOT_FOUND": "./hearth outputs JOB   names its files",
    "E_UNAUTHORIZED": "--key KEY, or HEARTH_KEY in the environment",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    name: str
    data: str
    id: str = ""


class Gateway:
    """A platform, here or elsewhere."""

    def __init__(self, *, url: str, key: str, silent_fix: str = "") -> None:
        self._parts = urlsplit(url)
        self.key = key
        self._silent_fix = silent_fix or f"curl -i {url}/healthz   once the address is right"
        if self._parts.scheme not in {"http", "https"} or not self._parts.hostname:
            raise CommandError(f"{url} is no address; it is like http://127.0.0.1:8080")

    @classmethod
    def open(cls, told: Path | None, *, url: str = "", key: str = "") -> Self:
        """The platform at `url`, else the one that runs in the data directory, with its admin key unless told another."""
        data = DataDir.at(told)
        address = url or (read_json(data.processes).get("address", "") if is_locked(data.lock) else "")
        if not address:
            raise NotRunning(
                f"No platform runs in {data.root}.", fix=f"./hearth up --detach{data.option}   or name one with --url"
            )
        if not key:
            try:
                key = data.admin_key.read_text(encoding="utf-8").strip()
            except FileNotFoundError:
                raise CommandError("There is no key to use.", fix="--key KEY, or HEARTH_KEY in the environment") from None
        return cls(url=address, key=key, silent_fix="" if url else f"./hearth status{data.option}")

    def get(self, path: str) -> Any:
        return self.ask("GET", path).json()

    def ask(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None, refuse: bool = True
    ) -> Answer:
        """One request, answered as a whole. An error of the gateway's is `Refused`, unless `refuse` is off."""
        connection, response = self._send(method, path, body, headers or {})
        try:
            answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()
        if refuse and answer.status >= 400:
            raise refusal(answer)
        return answer

    def stream(self, path: str) -> Iterator[bytes]:
        """An answer's body in whole lines as they come, until it ends."""
        connection, response = self._send("GET", path, None, {})
        try:
            if response.status >= 400:
                raise refusal(Answer(response.status, dict(response.getheaders()), response.read()))
            yield from response
        finally:
            connection.close()

    def download(self, path: str) -> Iterator[bytes]:
        """A file in pieces, compared with its ETag at the end, which is its SHA-256: a connection may end before the file does."""
        connection, response = self._send("GET", path, None, {})
        digest = hashlib.sha256()
        try:
            if response.status >= 400:
                raise refusal(Answer(response.status, dict(response.getheaders()), response.read()))
            while piece := response.read(PIECE_BYTES):
                digest.update(piece)
                yield piece
            if response.getheader("etag", "").strip('"') != digest.hexdigest():
                raise CommandError("The file did not come whole.", fix="ask again")
        finally:
            connection.close()

    def events(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[Event]:
        """Server-sent events, as they come, until the gateway ends them."""
        connection, response = self._send(method, path, body, {"accept": "text/event-stream", **(headers or {})})
        try:
            if response.status >= 400:
                raise refusal(Answer(response.status, dict(response.getheaders()), response.read()))
            yield from parse_events(response)
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=CONNECT_S_MAX, context=ssl.create_default_context())
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=CONNECT_S_MAX)
        )
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a call lasts as long as its function
            target = self._parts.path.rstrip("/") + quote(path, safe="/?&=%:@+,;~*>")
            connection.request(method, target, body, {"x-api-key": self.key, **headers})
            return connection, connection.getresponse()
        except OSError as failure:
            raise NotRunning(
                f"{self._parts.scheme}://{self._parts.netloc} does not answer: {failure}", fix=self._silent_fix
            ) from failure


def refusal(answer: Answer) -> Refused:
    """A problem document as an error: its title, its detail and its fix."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        text = answer.body[:2000].decode(errors="replace")
        return Refused(f"The gateway answered {answer.status}.", status=answer.status, detail=text)
    code = str(problem.get("code") or "")
    title = str(problem.get("title") or f"The gateway answered {answer.status}.")
    return Refused(
        f"{title} ({code})" if code else title,
        status=answer.status,
        problem_code=code,
        fix=_FIXES.get(code) or str(problem.get("fix") or ""),
        detail="\n".join(_details(problem, title)),
    )


def _details(problem: dict[str, Any], title: str) -> Iterator[str]:
    """What a problem says beyond its title: the detail, each wrong field with its line, and the user's own traceback."""
    errors: list[dict[str, Any]] = problem["errors"] if isinstance(problem.get("errors"), list) else []
    detail = str(problem.get("detail") or "")
    if detail not in {"", title} and not errors:
        yield detail
    for error in errors:
        line = f"line {error['line']}: " if error.get("line") else ""
        hint = f" ({error['hint']})" if error.get("hint") else ""
        yield f"{line}{error.get('field', '')}: {error.get('message', '')}{hint}"
    inner = problem.get("error")
    traceback = (inner.get("traceback") if isinstance(inner, dict) else "") or problem.get("traceback")
    if traceback:
        yield str(traceback).rstrip()


def parse_events(lines: Any) -> Iterator[Event]:
    """Server-sent events from lines of bytes."""
    name, event_id, data = "message", "", list[str]()
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if data:
                yield Event(name, "\n".join(data), event_id)
            name, data = "message", []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif field == "id":
                event_id = value


def multipart(parts: Mapping[str, tuple[str, str, bytes]]) -> tuple[str, bytes]:
    """Content type and body of a form; a part is (file name, content type, content)."""
    boundary = secrets.token_hex(16)
    chunks: list[bytes] = []
    for name, (file, kind, content) in parts.items():
        disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        chunks.append(f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: {kind}\r\n\r\n".encode())
        chunks += [content, b"\r\n"]
    chunks.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(chunks)
