"""The broker's configuration, as text. Pure: what to write, from what is known."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hearth_cli.local.ports import LOOPBACK

#: Functions with a consumer of their own on the work stream, at most; the server's default is 1,000 for a stream.
CONSUMERS_PER_STREAM_MAX: Final = 100_000
#: How long an answer may take that crosses from the services to a tenant: a direct call lasts as long as its function.
ANSWER_WITHIN: Final = "168h"


@dataclass(frozen=True, slots=True)
class Profile:
    """How durable an acknowledgement is."""

    name: str
    servers: int
    sync_interval: str
    means: str
    """What an acknowledgement survives, in words."""


PROFILES: Final = {
    "dev": Profile("dev", 1, "2m", "a kill of any process; not a power cut"),
    "single": Profile("single", 1, "always", "a kill of any process and a power cut"),
    "cluster": Profile("cluster", 3, "always", "a kill of any process, a power cut and the loss of one broker"),
}


@dataclass(frozen=True, slots=True)
class Server:
    """One nats-server of the platform."""

    name: str
    port: int
    monitor_port: int
    route_port: int | None = None

    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"

    @property
    def health_url(self) -> str:
        return f"http://{LOOPBACK}:{self.monitor_port}/healthz"


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room that the streams may reserve: they are refused where their limits together pass it."""

    memory_bytes: int
    file_bytes: int


def server_text(
    server: Server, *, platform: str, peers: tuple[Server, ...], profile: Profile, capacity: Capacity, store: Path
) -> str:
    """The file of one server; the users are in `users.conf` beside it, so that they change without it."""
    cluster = ""
    if profile.servers > 1:
        routes = [f"nats-route://{LOOPBACK}:{peer.route_port}" for peer in peers if peer != server]
        cluster = (
            f'cluster {{\n  name: "hearth-{platform}"\n  listen: "{LOOPBACK}:{server.route_port}"\n'
            f"  no_advertise: true\n  routes: {json.dumps(routes)}\n}}\n"
        )
    return f"""\
server_name: "{server.name}"
listen: "{LOOPBACK}:{server.port}"
http: "{LOOPBACK}:{server.monitor_port}"
max_payload: 1MB  # larger bodies travel by reference
max_connections: 4096
write_deadline: "10s"
ping_interval: "10s"  # a dead peer is noticed within 30 s
ping_max: 2
jetstream {{
  store_dir: {json.dumps(str(store))}
  max_memory_store: {capacity.memory_bytes}
  max_file_store: {capacity.file_bytes}
  sync_interval: "{profile.sync_interval}"  # an acknowledgement survives {profile.means}
  strict: true
  limits {{ default_max_consumers: {CONSUMERS_PER_STREAM_MAX} }}
}}
feature_flags {{ js_ack_fc_v2: false }}  # the newer acknowledgement subjects break the client's ordered consumers
{cluster}system_account: SYS
include "users.conf"
"""


@dataclass(frozen=True, slots=True)
class User:
    """Someone who may connect, and what they may say and hear."""

    name: str
    password: str
    publish: tuple[str, ...] = (">",)
    subscribe: tuple[str, ...] = (">",)
    responses: bool = False


def users_text(*, system: tuple[User, ...], services: tuple[User, ...], tenants: dict[str, tuple[User, ...]], prefix: str) -> str:
    """The accounts: the system's, the services' with all streams, and one for each tenant.

    A tenant's account holds nothing of its own. Its events and its direct calls cross to the services; the answers, the
    broker's acknowledgement among them, come back into that account alone, whatever reply subject was set.
    """
    exports = ", ".join(
        f'{{ service: "{prefix}.{area}.>", response_threshold: "{ANSWER_WITHIN}" }}' for area in ("events", "invoke")
    )
    lines = ["accounts {", f"  SYS {{ users: [\n{_users(system)}\n  ] }}"]
    lines.append(f"  HEARTH {{\n  jetstream: enabled\n  exports: [ {exports} ]\n  users: [\n{_users(services)}\n  ] }}")
    for tenant, users in sorted(tenants.items()):
        imports = ", ".join(
            f'{{ service: {{ account: HEARTH, subject: "{subject}" }} }}'
            for subject in (f"{prefix}.events.{tenant}.>", f"{prefix}.invoke.{tenant}.*")
        )
        lines.append(f'  "T_{tenant}" {{\n  imports: [ {imports} ]\n  users: [\n{_users(users)}\n  ] }}')
    return "\n".join([*lines, "}", ""])


def _users(users: tuple[User, ...]) -> str:
    return "\n".join(
        f"    {{ user: {json.dumps(user.name)}, password: {json.dumps(user.password)}, permissions: {{"
        f" publish: {_may(user.publish)}, subscribe: {_may(user.subscribe)}"
        # One answer to each request, whenever it comes: the default forgets the question after two minutes.
        + (f', allow_responses: {{ max: 1, expires: "{ANSWER_WITHIN}" }}' if user.responses else "")
        + " } }"
        for user in users
    )


def _may(subjects: tuple[str, ...]) -> str:
    """An empty list of what is allowed would allow everything."""
    return f"{{ allow: {json.dumps(subjects)} }}" if subjects else '{ deny: ">" }'
