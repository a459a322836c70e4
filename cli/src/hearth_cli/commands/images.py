"""`hearth images`: the images that functions run in."""

from hearth_cli import terminal
from hearth_cli.doctor import containers
from hearth_cli.errors import CommandError
from hearth_cli.local import engine, images
from hearth_cli.local.data_dir import workspace_root
from hearth_cli.local.engine import EngineNotReady


def build(*, force: bool) -> None:
    root = workspace_root()
    if root is None:
        raise CommandError("Images are built from a checkout of Hearth; this is an installed package.")
    state = engine.inspect_engine()
    if not state.ready:
        raise EngineNotReady(state.message, fix=state.fix)
    for runtime in images.RUNTIMES:
        with terminal.step(f"image for {runtime}") as step:
            built = images.build(root, containers.cache(), step, runtime=runtime, force=force)
        for name, seconds in built.steps:
            terminal.note(f"      {seconds:6.1f} s  {name}")
        terminal.out(built.reference)


def names() -> None:
    root = workspace_root()
    if root is None:
        raise CommandError("Images are named after a checkout of Hearth; this is an installed package.")
    for runtime in images.RUNTIMES:
        terminal.out(images.reference(root, runtime))
