"""`hearth pub` and `hearth sub`: events by hand."""

import asyncio
from pathlib import Path

from hearth_cli import terminal
from hearth_cli.client import Gateway
from hearth_cli.commands import bodies
from hearth_cli.errors import CommandError, NotRunning
from hearth_cli.local.broker_users import LISTENER, BrokerUsers
from hearth_cli.local.data_dir import DataDir, is_locked, read_json


def publish(subject: str, told: Path | None, *, body: str, url: str, key: str) -> None:
    content, kind = bodies.read(body)
    answer = Gateway.open(told, url=url, key=key).ask(
        "POST", f"/v1/events/{subject}", body=content, headers={"content-type": kind}
    )
    terminal.out(answer.body.decode(errors="replace").strip() or f"published {subject}")


def subscribe(subject: str, told: Path | None, *, tenant: str, count: int) -> None:
    data = DataDir.at(told)
    from hearth_contracts.errors import InvalidName

    if not is_locked(data.lock):
        raise NotRunning(f"No platform runs in {data.root}.", fix=f"./hearth up --detach{data.option}")
    try:
        asyncio.run(_listen(data, subject, tenant=tenant, count=count))
    except InvalidName as error:
        raise CommandError(f"{error}.", fix="./hearth sub 'camera.*.motion'") from None


async def _listen(data: DataDir, subject: str, *, tenant: str, count: int) -> None:
    from hearth_contracts import subjects
    from hearth_kit import nats_bus
    from hearth_kit.message import Message

    login = read_json(BrokerUsers(data=data).credentials(LISTENER))
    url = read_json(data.processes)["broker"]
    enough = asyncio.Event()
    seen = 0

    def show(message: Message) -> None:
        nonlocal seen
        seen += 1
        name = message.subject.removeprefix(f"{subjects.PREFIX}.events.{tenant}.")
        terminal.out(f"{name}  {terminal.plain(bytes(message.body).decode(errors='replace'))}")
        if count and seen >= count:
            enough.set()

    async with nats_bus.connect(url=url, instance=LISTENER, user=login["user"], password=login["password"]) as bus:
        await bus.subscribe(subjects.events_matching(tenant, subject), show)
        terminal.note(f"listening for {subject} of {tenant}; Ctrl-C ends it")
        await enough.wait()
