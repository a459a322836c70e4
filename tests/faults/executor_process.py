"""The executor's own process, as shipped but for the sandbox: functions run inside it, and write down that they ran.

    python executor_process.py FOLDER [GUARD ...]

`FOLDER/attempts` gets a line per run. A file `FOLDER/die-*` arms the failpoint of `HEARTH_FAILPOINT` once: whoever takes it
away dies at that step. A GUARD is switched off, for the controls that show what it is there for.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "services/executor/tests/service"))

from in_process import Calling, InProcess

from hearth_executor import app, capacity, service
from hearth_executor.config import Settings
from hearth_executor.domain import intake
from hearth_executor.domain.intake import Verdict
from hearth_executor.failpoints import Failpoints
from hearth_executor.membership import Membership
from hearth_kit import lifecycle, nats_bus
from hearth_kit.nats_bus import NatsBus

FOLDER = Path(sys.argv[1])
WITHOUT = frozenset(sys.argv[2:])


async def work(calling: Calling) -> bytes:
    """Takes as long as it is told to: `s` the first time, `again_s` later. No two runs return the same."""
    event = json.loads(await calling.body() or b"{}")
    job = calling.invocation.job
    with (FOLDER / "attempts").open("a+") as log:
        log.seek(0)
        again = job in log.read()
        log.write(f"{job} {calling.invocation.attempt} {os.getpid()}\n")
    await asyncio.sleep(event.get("again_s", 0) if again else event.get("s", 0))
    if event.get("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    return json.dumps({"n": event.get("n"), "run": secrets.token_hex(8)}).encode()


class Once(Failpoints):
    """Dies as often as it is armed."""

    def hit(self, name: str) -> None:
        for token in FOLDER.glob("die-*") if name in self._armed else ():
            with contextlib.suppress(FileNotFoundError):
                token.unlink()
                super().hit(name)


def switch_off(guard: str) -> None:
    if guard == "fence":
        publish = NatsBus.publish

        async def unfenced(self: NatsBus, subject: str, *arguments: Any, **options: Any) -> Any:
            return await publish(self, subject, *arguments, **options | {"expect_last": None})

        NatsBus.publish = unfenced
    elif guard == "membership":
        Membership.doubtful = property(lambda self: False)

        async def never(self: Membership) -> None:
            await asyncio.Event().wait()

        Membership.watch = never
        Membership.missed = lambda self, why: None
    elif guard == "same":
        known = intake.decide

        def forgetful(*arguments: Any, **options: Any) -> Verdict:
            verdict = known(*arguments, **options)
            return Verdict.LOOK_FIRST if verdict is Verdict.SAME else verdict

        service.intake.decide = forgetful
    elif guard == "custody":
        take_in = service.Executor._take_in

        def acknowledge(self: service.Executor, held: Any, *, look_first: bool) -> None:
            held.ack()
            take_in(self, held, look_first=look_first)

        service.Executor._take_in = acknowledge
    elif guard == "hand-back":
        app.Service.drain = lambda self, drain_s_max: asyncio.sleep(0)
    else:
        raise SystemExit(f"no guard {guard}")


if __name__ == "__main__":
    for guard in WITHOUT:
        switch_off(guard)
    capacity.REPEAT_S = 0.2  # so that a death is noticed after a second
    app.Failpoints = Once
    nats_bus.PING_S = 0.2
    InProcess.name = "container"  # what functions ask for
    app.ContainerBackend = lambda settings: InProcess({"work": work}, units_max=1000)
    lifecycle.main(app.serve, Settings)
