"""The container engine and the images that functions run in."""

import os
from pathlib import Path

from hearth_cli.doctor.findings import Finding, Progress
from hearth_cli.local import engine, images
from hearth_cli.local.data_dir import workspace_root


def cache() -> Path:
    """Where fetched packages wait for the next build."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hearth" / "images"


def findings() -> list[Finding]:
    state = engine.inspect_engine()
    if not state.ready:
        mendable = (
            state.kind not in {"forbidden", "elsewhere"}
            and os.geteuid() == 0
            and (state.kind == "stopped" or engine.can_install())
        )
        says = f"{state.message}; functions in containers are off"
        found = Finding("engine", "off", says, state.fix, engine.install_engine if mendable else None)
        return [
            found,
            Finding("images", "off", "no engine to keep them in", state.fix, build if mendable else None),
        ]
    return [Finding("engine", "ok", "; ".join((state.message, *state.notes))), *(image(runtime) for runtime in images.RUNTIMES)]


def image(runtime: str) -> Finding:
    root = workspace_root()
    if root is None:
        return Finding(f"image {runtime}", "off", "images are built from a checkout", "./hearth images build")
    name = images.reference(root, runtime)
    if images.present(root, runtime):
        return Finding(f"image {runtime}", "ok", name)
    return Finding(
        f"image {runtime}", "off", f"{name} is not built", "./hearth images build", build if engine.can_install() else None
    )


def build(progress: Progress) -> None:
    """Everything between an engine and a runnable function."""
    root = workspace_root()
    assert root is not None
    engine.install_packages(["mmdebstrap", "debian-archive-keyring"], progress, "installing mmdebstrap")
    for runtime in images.RUNTIMES:
        images.build(root, cache(), progress, runtime=runtime)
