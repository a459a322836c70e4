"""What each broker user may say and hear: generated from who produces and consumes what, never written by hand."""

from dataclasses import dataclass
from typing import Final

from hearth_contracts import registry, streams, subjects


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects a user may publish on and subscribe to; everything else is refused by the broker."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responses: bool = False
    """Whether the user may answer requests that reached it (`allow_responses`): no list of other people's inboxes."""


def inbox(instance: str) -> str:
    """The prefix of a user's own inboxes: nobody else may listen there."""
    return f"_INBOX.{instance}"


def for_service(service: str, instance: str) -> Permissions:
    """The permissions of one process. An executor's instance is its id, so that it hears its own runs only."""
    publish: set[str] = set()
    subscribe = {f"{inbox(instance)}.>"}
    for contract in registry.CONTRACTS:
        if service in contract.producers:
            publish.add((contract.own_subject or contract.subject).format(service=service, instance=instance))
        if service in contract.listeners:
            subscribe.add((contract.own_listen or contract.subject).format(service=service, instance=instance))
        if service in contract.readers and contract.stream is not None:
            publish.add(f"$JS.API.DIRECT.GET.{contract.stream.name}")
            publish.add(f"$JS.API.DIRECT.GET.{contract.stream.name}.{contract.subject}")
    for consumer in registry.CONSUMERS:
        if consumer.service == service:
            name = consumer.name.format(instance=instance)
            publish.add(f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream.name}.{name}")
            publish.add(f"$JS.API.CONSUMER.INFO.{consumer.stream.name}.{name}")
            publish.add(f"$JS.ACK.{consumer.stream.name}.{name}.>")
            publish.add(f"$JS.API.STREAM.INFO.{consumer.stream.name}")
    for use in registry.BUCKETS:
        if service in use.readers or service in use.writers:
            publish.add(f"$JS.API.DIRECT.GET.{use.stream.name}.$KV.{use.bucket}.>")
            publish.add(f"$JS.API.DIRECT.GET.{use.stream.name}")
            publish.add(f"$JS.API.STREAM.INFO.{use.stream.name}")
            subscribe.add(f"$KV.{use.bucket}.>")
        if service in use.writers:
            publish.add(f"$KV.{use.bucket}.>")
    publish.update(_EXTRA_PUBLISH.get(service, ()))
    subscribe.update(_EXTRA_SUBSCRIBE.get(service, ()))
    return Permissions(publish=tuple(sorted(publish)), subscribe=tuple(sorted(subscribe)), responses=service in _ANSWERERS)


def for_bootstrap() -> Permissions:
    """The user that makes streams and settings: `up` and operators, never a service."""
    return Permissions(publish=(">",), subscribe=(">",))


def for_tenant(tenant: str) -> Permissions:
    """A tenant's publisher, in the tenant's own account: its events, its functions, its own inbox."""
    return Permissions(
        publish=(f"{subjects.PREFIX}.events.{tenant}.>", f"{subjects.PREFIX}.invoke.{tenant}.*"),
        subscribe=("_INBOX.>",),
    )


#: Services that answer requests sent to them.
_ANSWERERS: Final = (registry.EXECUTOR, registry.GATEWAY, registry.PERSISTER)


def _stream_admin(*names: str) -> tuple[str, ...]:
    return tuple(f"$JS.API.STREAM.{verb}.{name}" for name in names for verb in ("CREATE", "INFO"))


def _consumer_admin(*names: str) -> tuple[str, ...]:
    return tuple(
        subject
        for name in names
        for subject in (
            f"$JS.API.CONSUMER.CREATE.{name}.>",
            f"$JS.API.CONSUMER.DELETE.{name}.*",
            f"$JS.API.CONSUMER.INFO.{name}.*",
            f"$JS.API.CONSUMER.NAMES.{name}",
            f"$JS.API.CONSUMER.LIST.{name}",
        )
    )


#: A standby hears at once that a role was given back.
_EXTRA_SUBSCRIBE: Final[dict[str, tuple[str, ...]]] = {registry.PERSISTER: ("$KV.LEASES.store.*",)}

_EXTRA_PUBLISH: Final[dict[str, tuple[str, ...]]] = {
    # The scheduler alone makes and removes consumers of work, walks a dead executor's runs and remakes memory streams.
    registry.SCHEDULER: (
        *_consumer_admin("CALLS", "JOBS", "RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC", "AI"),
        *_stream_admin(*(stream.name for stream in streams.MEMORY_STREAMS)),
        *(f"$JS.API.STREAM.INFO.{stream.name}" for stream in streams.FILE_STREAMS),
        "$JS.API.STREAM.PURGE.RUNS",
        "$JS.API.STREAM.PURGE.RUNS_SYNC",
        "$JS.API.STREAM.PURGE.STATES",
        "$JS.API.STREAM.MSG.DELETE.JOBS",
    ),
    # A store's consumer is made when the store is configured; records leave when every store has them.
    registry.PERSISTER: (
        *_consumer_admin("RECORDS"),
        "$JS.API.STREAM.PURGE.RECORDS",
        "$JS.API.STREAM.INFO.RECORDS",
        # One persister at a time writes to a store: a lease per store, and no other role's.
        "$KV.LEASES.store.*",
        "$JS.API.DIRECT.GET.KV_LEASES.$KV.LEASES.store.*",
    ),
    registry.GATEWAY: (
        "$JS.API.STREAM.PURGE.OBJECTS_BODIES",
        "$JS.API.STREAM.PURGE.OBJECTS_CODE",
        *(f"$JS.API.STREAM.INFO.{stream.name}" for stream in streams.STREAMS),
    ),
    registry.EXECUTOR: ("$JS.API.STREAM.PURGE.OBJECTS_BODIES",),
}
