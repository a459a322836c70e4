"""Every verb of the hearth command, with its options. What a verb does is in `commands/`, imported when it is called."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from hearth_cli.errors import CommandError

app = typer.Typer(
    name="hearth",
    help="Run your own functions on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
images_app = typer.Typer(help="The images that functions run in.", no_args_is_help=True, rich_markup_mode=None)
keys_app = typer.Typer(help="API keys.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(images_app, name="images")
app.add_typer(keys_app, name="keys")

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Data directory; .hearth unless told otherwise.")]
Url = Annotated[
    str, typer.Option("--url", envvar="HEARTH_URL", help="A platform elsewhere; the local one unless told otherwise.")
]
Key = Annotated[str, typer.Option("--key", envvar="HEARTH_KEY", help="API key; the local admin key unless told otherwise.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
NoInstall = Annotated[bool, typer.Option("--no-install", help="Never install anything; say what is missing instead.")]


@app.command()
def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Return when ready; `hearth down` stops it.")] = False,
    port: Annotated[int, typer.Option(help="HTTP port on the loopback.", min=1, max=65535)] = 8080,
    data: Data = None,
    executors: Annotated[int, typer.Option(min=0, max=64)] = 1,
    schedulers: Annotated[int, typer.Option(min=1, max=8)] = 1,
    profile: Annotated[str, typer.Option(help="dev, single or cluster: what an acknowledgement survives.")] = "dev",
    no_install: NoInstall = False,
) -> None:
    """Start the broker and all services on this machine."""
    from hearth_cli.commands import up as command

    command.run(
        data, port=port, executors=executors, schedulers=schedulers, profile=profile, detach=detach, install=not no_install
    )


@app.command()
def down(*, data: Data = None, purge: Annotated[bool, typer.Option("--purge", help="Delete the data, too.")] = False) -> None:
    """Stop everything that `up` started."""
    from hearth_cli.commands import down as command

    command.run(data, purge=purge)


@app.command()
def status(*, data: Data = None, url: Url = "", key: Key = "", as_json: Json = False) -> None:
    """Every process and the fleet."""
    from hearth_cli.commands import status as command

    command.run(data, url=url, key=key, as_json=as_json)


@app.command()
def doctor(
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended here.")] = False,
    as_json: Json = False,
    url: Url = "",
    key: Key = "",
    data: Data = None,
    remake: Annotated[str, typer.Option("--remake", metavar="STREAM", help="Make a lost stream anew, empty; with --fix.")] = "",
) -> None:
    """What is missing, and the one command for it."""
    from hearth_cli.commands import doctor as command

    raise typer.Exit(command.run(data, fix=fix, as_json=as_json, url=url, key=key, remake=remake))


@images_app.command("build")
def images_build(*, force: Annotated[bool, typer.Option("--force", help="Build even what is there.")] = False) -> None:
    """Build the runtime images from Debian's packages."""
    from hearth_cli.commands import images as command

    command.build(force=force)


@images_app.command("name")
def images_name() -> None:
    """The name that an image has to have to fit this checkout."""
    from hearth_cli.commands import images as command

    command.names()


@app.command()
def new(name: str, *, folder: Annotated[Path | None, typer.Option("--in", help="Where; the current folder.")] = None) -> None:
    """Write a first function to start from."""
    from hearth_cli.commands import new as command

    command.run(name, folder or Path.cwd())


@app.command()
def deploy(
    path: Path,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Deploy again whenever a file changes.")] = False,
    url: Url = "",
    key: Key = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Deploy the function in a folder."""
    from hearth_cli.commands import deploy as command

    command.run(path, data, url=url, key=key, watch=watch, as_json=as_json)


@app.command("functions")
def functions(*, url: Url = "", key: Key = "", data: Data = None, as_json: Json = False) -> None:
    """The functions that are deployed."""
    from hearth_cli.commands import functions as command

    command.run(data, url=url, key=key, as_json=as_json)


@app.command()
def invoke(
    name: str,
    *,
    body: Annotated[str, typer.Option("-d", "--data-body", metavar="JSON|@FILE", help="The event; @- reads stdin.")] = "",
    asynchronous: Annotated[bool, typer.Option("--async", help="Return with the job's id at once.")] = False,
    url: Url = "",
    key: Key = "",
    data: Data = None,
) -> None:
    """Call a function and print its result."""
    from hearth_cli.commands import invoke as command

    raise typer.Exit(command.run(name, data, body=body, asynchronous=asynchronous, url=url, key=key))


@app.command()
def logs(
    target: Annotated[str, typer.Argument(metavar="[JOB|FUNCTION|SERVICE]")] = "",
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow")] = False,
    url: Url = "",
    key: Key = "",
    data: Data = None,
) -> None:
    """What a call, a function or a service printed."""
    from hearth_cli.commands import logs as command

    command.run(target, data, follow=follow, url=url, key=key)


@app.command()
def outputs(
    job: str,
    name: Annotated[str, typer.Argument(metavar="[NAME]")] = "",
    *,
    url: Url = "",
    key: Key = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """The files a job wrote; with a name, that file on stdout."""
    from hearth_cli.commands import outputs as command

    command.run(job, name, data, url=url, key=key, as_json=as_json)


@app.command()
def trace(job: str, *, url: Url = "", key: Key = "", data: Data = None, as_json: Json = False) -> None:
    """Where the time of a call went."""
    from hearth_cli.commands import trace as command

    command.run(job, data, url=url, key=key, as_json=as_json)


@app.command()
def pub(
    subject: str,
    body: Annotated[str, typer.Argument(metavar="[JSON|@FILE]")] = "",
    *,
    url: Url = "",
    key: Key = "",
    data: Data = None,
) -> None:
    """Publish an event."""
    from hearth_cli.commands import events as command

    command.publish(subject, data, body=body, url=url, key=key)


@app.command()
def sub(
    subject: Annotated[str, typer.Argument(help="With wildcards, as in a trigger.")] = ">",
    *,
    count: Annotated[int, typer.Option(help="Stop after so many; 0: never.", min=0)] = 0,
    tenant: Annotated[str, typer.Option()] = "default",
    data: Data = None,
) -> None:
    """Print events as they come, from the local platform's broker."""
    from hearth_cli.commands import events as command

    command.subscribe(subject, data, tenant=tenant, count=count)


@keys_app.command("list")
def keys_list(*, url: Url = "", key: Key = "", data: Data = None, as_json: Json = False) -> None:
    """Every key, by its prefix."""
    from hearth_cli.commands import keys as command

    command.listed(data, url=url, key=key, as_json=as_json)


@keys_app.command("create")
def keys_create(
    name: str,
    *,
    tenant: Annotated[str, typer.Option(help="Whose functions it may reach.")] = "default",
    admin: Annotated[bool, typer.Option("--admin", help="It may make keys, too.")] = False,
    url: Url = "",
    key: Key = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a key; it is shown this once."""
    from hearth_cli.commands import keys as command

    command.create(name, data, tenant=tenant, admin=admin, url=url, key=key, as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(prefix: str, *, url: Url = "", key: Key = "", data: Data = None) -> None:
    """Make a key useless, everywhere, within seconds."""
    from hearth_cli.commands import keys as command

    command.revoke(prefix, data, url=url, key=key)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(
    context: typer.Context,
    *,
    everything: Annotated[bool, typer.Option("--all", help="With full counts; takes up to an hour.")] = False,
    no_install: NoInstall = False,
) -> None:
    """Run Hearth's own tests."""
    from hearth_cli.commands import test as command

    raise typer.Exit(command.run(everything=everything, install=not no_install, arguments=context.args))


@app.command()
def check() -> None:
    """Style, types, imports, dependencies, rules."""
    from hearth_cli.commands import check as command

    raise typer.Exit(command.run())


@app.command()
def bench(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer calls; under three minutes.")] = False,
    url: Url = "",
    key: Key = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Measure the budgets and print one table."""
    from hearth_cli.commands import bench as command

    raise typer.Exit(command.run(data, url=url, key=key, quick=quick, as_json=as_json))


def main() -> int:
    """Run a command; what goes wrong in a known way is two lines, not a traceback."""
    told: list[int] = []

    def end(number: int, _: object) -> None:
        """Told to end: exactly as with Ctrl-C, so that what was started for this command alone is stopped first."""
        told.append(number)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what runs in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        app(prog_name="hearth", standalone_mode=True)
    except CommandError as error:
        from hearth_cli.terminal import show_error

        show_error(error)
        return error.exit_code
    except PermissionError as error:
        from hearth_cli.terminal import show_error

        fix = "--data with a folder of your own" if os.geteuid() else ""
        show_error(CommandError(f"{error.filename or 'a file'} may not be read or written by this user.", fix=fix))
        return 1
    except KeyboardInterrupt:
        return 128 + (told[0] if told else signal.SIGINT)
    except SystemExit:
        if not told:
            raise
        return 128 + told[0]
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    return 0
