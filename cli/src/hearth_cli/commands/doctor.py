"""`hearth doctor`: what is missing, and the one command that mends each; `--fix` runs those that can be run here."""

from pathlib import Path

from hearth_cli import terminal
from hearth_cli.doctor import containers, machine
from hearth_cli.doctor import platform as running
from hearth_cli.doctor.findings import Finding, worst
from hearth_cli.errors import CommandError
from hearth_cli.local.data_dir import DataDir
from hearth_cli.local.plan import HTTP_PORT

_MARKS = {"ok": "✓", "off": "–", "bad": "✗"}


def run(told: Path | None, *, fix: bool, as_json: bool, url: str, key: str, remake: str) -> int:
    """Exit status 0 when Hearth runs here, if with less than everything."""
    data = DataDir.at(told)
    if remake:
        _remake(data, remake, allowed=fix)
    if fix and not url:
        mend(look(data))
    if url:
        from hearth_cli.client import Gateway

        findings = running.remote(Gateway.open(told, url=url, key=key))
    else:
        findings = look(data)
    if as_json:
        terminal.out_json({"state": worst(findings), "findings": [finding.row for finding in findings]})
    else:
        for finding in findings:
            terminal.out(f"{_MARKS[finding.state]} {finding.name:13} {finding.says}")
            if finding.fix and finding.state != "ok":
                terminal.out(f"  {'':13} mend it with: {finding.fix}")
    return 1 if worst(findings) == "bad" else 0


def look(data: DataDir) -> list[Finding]:
    """Everything about this machine, in the order in which one thing needs the other."""
    return [
        machine.python(),
        machine.broker(),
        *containers.findings(),
        machine.control_groups(),
        machine.fast_link(),
        machine.disk(data),
        machine.port(data, HTTP_PORT),
        *running.local(data),
    ]


def mend(findings: list[Finding]) -> list[Finding]:
    """Mend what can be mended here, saying so; answers with what could not."""
    left: list[Finding] = []
    for finding in findings:
        if finding.state == "ok":
            continue
        if finding.mend is None:
            left.append(finding)
            continue
        try:
            with terminal.step(finding.name) as step:
                finding.mend(step)
        except CommandError as error:
            terminal.show_error(error)
            left.append(finding)
    return left


def make_ready(*, install: bool) -> list[str]:
    """Before a start: mend what functions need, where we may; answers with what stays off, each with its command."""
    findings = containers.findings()
    missing = [finding for finding in findings if finding.state != "ok"]
    if install and any(finding.mend for finding in missing):
        terminal.note("something is missing here; installing it (--no-install leaves it)")
        missing = mend(missing)
    # Images are no news where there is no engine to keep them in.
    told = [finding for finding in missing if finding.name == "engine"] or missing
    return [f"{finding.says}; mend it with: {finding.fix}" for finding in told]


def _remake(data: DataDir, stream: str, *, allowed: bool) -> None:
    """Make a lost stream anew, empty: only ever because somebody said so."""
    if not allowed:
        raise CommandError(f"{stream} would be made anew, empty.", fix=f"./hearth doctor --fix --remake {stream}")
    import asyncio

    from hearth_cli.local import bootstrap
    from hearth_cli.local.plan import Plan

    with terminal.step(f"making {stream} anew"):
        asyncio.run(bootstrap.bootstrap(Plan.load(data), remake=stream))
