"""The composition root of the persister."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from hearth_contracts import fleet, registry, streams, subjects
from hearth_kit import lifecycle
from hearth_kit.background import Background
from hearth_kit.bus import Bus
from hearth_kit.errors import BusError
from hearth_kit.lease import Role
from hearth_kit.lifecycle import Life
from hearth_kit.message import Message
from hearth_kit.nats_bus import connect
from hearth_kit.objects import Objects
from hearth_persister import metrics
from hearth_persister.adapters.folder import FolderStore
from hearth_persister.adapters.index import Index
from hearth_persister.archive import Archive
from hearth_persister.chain import Chain
from hearth_persister.config import Settings
from hearth_persister.copies import Copier
from hearth_persister.domain.batching import Limits
from hearth_persister.failpoints import Failpoints
from hearth_persister.retention import Retention
from hearth_persister.segments import Encoder
from hearth_persister.service import Line, LineSettings

_log = logging.getLogger(__name__)

#: How often each store's lag is looked up and told.
STATUS_S: Final = 2.0
#: What all stores together may hold in memory on its way: with the interpreter well under 150 MiB.
HELD_BYTES_MAX: Final = 32 * 1024 * 1024


async def serve(settings: Settings) -> None:
    """Run until SIGTERM."""
    async with lifecycle.running(settings, service=registry.PERSISTER) as life, contextlib.AsyncExitStack() as stack:
        lines = await _lines(settings, life, stack)
        for line in lines:
            await line.ensure_consumer()
        archive = Archive(lines=lines, objects=Objects(life.bus))
        answers = Background("archive")

        def asked(message: Message) -> None:
            answers.start(archive.answer(message))

        subscription = await life.bus.subscribe(subjects.ARCHIVE, asked, queue="persisters")
        writing = [life.start(line.run(), f"line-{line.store.name}") for line in lines]
        retention = Retention(
            bus=life.bus, clock=life.clock, lines=lines, grace_s=settings.records_grace_s,
            records_max=settings.records_kept_max,
        )  # fmt: skip
        side = [
            life.start(_retain(retention, settings.retention_every_s), "retention"),
            life.start(_tell(life, lines), "status"),
        ]
        life.ready()
        await life.stopping.wait()
        # Questions first, so that nobody waits for an answer that will not come; then each store gets what is here.
        await subscription.stop()
        await answers.drain(settings.drain_s_max / 2)
        for line in lines:
            line.stop()
        await asyncio.wait(writing, timeout=settings.drain_s_max / 2)
        for task in (*writing, *side):
            task.cancel()


async def _lines(settings: Settings, life: Life, stack: contextlib.AsyncExitStack) -> list[Line]:
    folders = settings.folders()
    limits = Limits(
        bytes_max=settings.segment_bytes_max,
        window_us=int(settings.segment_age_s * 1_000_000),
        margin_s=settings.segment_margin_s,
        records_max=settings.segment_records_max,
    )
    chosen = LineSettings(
        limits=limits,
        ack_wait_s=settings.store_ack_wait_s,
        held_bytes_max=max(2 * settings.segment_bytes_max, HELD_BYTES_MAX // len(folders)),
        retry_s=settings.store_retry_s,
        retry_s_max=settings.store_retry_s_max,
    )
    failpoints = Failpoints(settings.failpoint)
    thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
    stack.callback(thread.shutdown, wait=False)
    encoder = Encoder(thread, stores=len(folders))
    lines: list[Line] = []
    for name, path in folders.items():
        store = FolderStore(name, path)
        stack.callback(store.close)
        index = Index(settings.data_dir / "persister" / settings.instance / f"{name}.index")
        await index.open()
        stack.push_async_callback(index.close)
        line = Line(
            store=store,
            index=index,
            chain=Chain(store=store, index=index, bus=life.bus, clock=life.clock),
            bus=life.bus,
            role=Role(bus=life.bus, role=f"store.{name}", holder=settings.instance, clock=life.clock),
            copier=Copier(objects=Objects(life.bus), store=store),
            tracer=life.tracer,
            clock=life.clock,
            settings=chosen,
            failpoints=failpoints,
            encoder=encoder,
            changed=lambda: _note(life, lines),
        )
        lines.append(line)
    return lines


def _note(life: Life, lines: Sequence[Line]) -> None:
    """What people see of each store."""
    for line in lines:
        state = fleet.STORE_WRITING if line.active else "standing by"
        if line.breaker.open:
            state = f"{fleet.STORE_DEGRADED} since {line.breaker.since:.0f}: {line.breaker.why}"
        life.notes[f"{fleet.STORE_NOTE}{line.store.name}"] = state


async def _tell(life: Life, lines: Sequence[Line]) -> None:
    """Each store's lag, for the metrics and the fleet."""
    while True:
        _note(life, lines)
        for line in lines:
            with contextlib.suppress(BusError):
                info = await life.bus.consumer_info(streams.RECORDS.name, line.consumer)
                if info is not None:
                    lag = info.pending + info.ack_pending
                    if not lag:
                        line.caught_up()
                    metrics.LAG.labels(line.store.name).set(lag)
                    life.notes[f"store.{line.store.name}.lag"] = str(lag)
        await asyncio.sleep(STATUS_S)


async def _retain(retention: Retention, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await retention.once()
        except BusError as error:
            _log.info("records stay in the broker for now: %s", error)


async def forget(settings: Settings, store: str) -> None:
    """Remove the consumer of a store that is configured no longer, so that it holds no record back."""
    if store in settings.folders():
        raise SystemExit(f"store {store} is configured: take it out of HEARTH_STORE_FOLDERS first")
    user, password = settings.broker_login()
    async with connect(url=settings.nats_url, instance=settings.instance, user=user, password=password) as bus:
        await _forget(bus, streams.store_consumer(store))


async def _forget(bus: Bus, consumer: str) -> None:
    if consumer not in await bus.consumer_names(streams.RECORDS.name):
        raise SystemExit(f"there is no consumer {consumer}")
    await bus.delete_consumer(streams.RECORDS.name, consumer)
