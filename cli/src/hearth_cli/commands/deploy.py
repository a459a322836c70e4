"""`hearth deploy`: a folder becomes a function; with `--watch`, again whenever a file in it changes."""

import time
from pathlib import Path
from typing import Any, Final

import yaml

from hearth_cli import bundle, terminal
from hearth_cli.client import Gateway, multipart
from hearth_cli.errors import CommandError

#: How often a watched folder is looked at; an editor's save is deployed before one has switched windows.
WATCH_POLL_S: Final = 0.3
BUILD_S_MAX: Final = 600.0


def run(path: Path, told: Path | None, *, url: str, key: str, watch: bool, as_json: bool) -> None:
    gateway = Gateway.open(told, url=url, key=key)
    folder = bundle.folder_of(path)
    if not watch:
        version = deploy(gateway, folder)
        terminal.out_json(version) if as_json else terminal.out(_line(version))
        return
    seen: object = None
    terminal.note(f"watching {folder}; Ctrl-C ends it")
    while True:
        try:
            now = bundle.fingerprint(folder)
            if now != seen:
                seen = now
                terminal.out(_line(deploy(gateway, folder)))
        except CommandError as error:
            terminal.show_error(error)
        except FileNotFoundError:
            pass  # an editor is replacing the file: the next look sees the new one
        time.sleep(WATCH_POLL_S)


def deploy(gateway: Gateway, folder: Path) -> dict[str, Any]:
    """Deploy once and wait until the version is ready to be called."""
    text = (folder / bundle.SPEC_NAME).read_text(encoding="utf-8")
    name = _name(text, folder)
    kind, body = multipart(
        {
            "spec": (bundle.SPEC_NAME, "application/yaml", text.encode()),
            "code": ("code.tar.gz", "application/gzip", bundle.pack(folder)),
        }
    )
    version: dict[str, Any] = gateway.ask("PUT", f"/v1/functions/{name}", body=body, headers={"content-type": kind}).json()
    until = time.monotonic() + BUILD_S_MAX
    while version.get("state") == "BUILDING" and time.monotonic() < until:
        time.sleep(0.2)
        version = gateway.get(f"/v1/functions/{name}")
    if version.get("state") == "FAILED":
        raise CommandError(
            f"{name} cannot be run.", fix=f"mend it, then ./hearth deploy {folder}", detail=str(version.get("reason", ""))
        )
    return version


def _name(text: str, folder: Path) -> str:
    """The function's name, which the address needs; everything else in the file is for the gateway to judge."""
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark is not None else "it"
        raise CommandError(f"{folder / bundle.SPEC_NAME} is not YAML.", fix=f"mend {line}", detail=str(error)) from None
    name = spec.get("name") if isinstance(spec, dict) else None
    if not isinstance(name, str) or not name:
        raise CommandError(f"{folder / bundle.SPEC_NAME} names no function.", fix="add the line   name: hello")
    return name


def _line(version: dict[str, Any]) -> str:
    digest = str(version.get("digest", ""))[:12]
    return f"{version.get('name')} version {version.get('version')} is {version.get('state')} ({digest})"
