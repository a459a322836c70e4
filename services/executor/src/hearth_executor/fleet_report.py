"""What this executor says of itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hearth_contracts.fleet import Capacity
from hearth_executor.ports import Backend
from hearth_executor.service import Executor
from hearth_kit.clock import Clock


class Offer(Protocol):
    """The backends that are there now, and what is to be said of them."""

    @property
    def backends(self) -> Sequence[Backend]: ...

    @property
    def runtimes(self) -> tuple[str, ...]: ...

    @property
    def memory_free_mb(self) -> int: ...

    @property
    def notes(self) -> Mapping[str, str]: ...


def composer(
    *, executor: Executor, offer: Offer, clock: Clock, executor_id: str, name: str, labels: Mapping[str, str]
) -> Callable[[], Capacity]:
    def compose() -> Capacity:
        warm: dict[str, int] = {}
        generic: dict[str, int] = {}
        units = 0
        for backend in offer.backends:
            pools = backend.report()
            warm.update(pools.warm)
            generic.update(pools.generic)
            units += pools.units
        assigned = dict(warm)
        for key, count in executor.busy.items():
            assigned[key] = assigned.get(key, 0) + count
        usable = bool(offer.backends) and not executor.draining
        return Capacity(
            executor=executor_id,
            name=name,
            at=clock.now(),
            slots=executor.slots,
            free=executor.free if usable else 0,
            queue_room=executor.room() if usable else 0,
            draining=executor.draining,
            memory_free_mb=offer.memory_free_mb,
            labels=dict(labels),
            backends=tuple(backend.name for backend in offer.backends),
            runtimes=offer.runtimes,
            warm=warm,
            assigned=assigned,
            generic=generic,
            units=units,
            accepted=executor.accepted[False],
            accepted_sync=executor.accepted[True],
            epoch=executor.epoch,
            running=executor.running,
            calls=executor.calls,
            backend_notes=dict(offer.notes),
        )

    return compose
