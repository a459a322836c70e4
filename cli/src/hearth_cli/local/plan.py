"""What one platform consists of: decided by `up`, written down, carried out by the supervisor."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hearth_cli.local.broker_config import PROFILES, Capacity, Profile, Server
from hearth_cli.local.data_dir import DataDir, read_json, write_private
from hearth_cli.local.ports import LOOPBACK

HTTP_PORT: Final = 8080
#: NATS's own; another is chosen where it is taken.
BROKER_PORT: Final = 4222
#: A service hands its work back within this, or is killed.
DRAIN_S_MAX: Final = 10
#: The tenant that a new platform has, whose admin key lies in the data directory.
TENANT: Final = "default"


@dataclass(frozen=True, slots=True)
class Options:
    """What `up` was asked for."""

    port: int = HTTP_PORT
    executors: int = 1
    schedulers: int = 1
    profile: str = "dev"


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of a service."""

    service: str
    name: str
    metrics_port: int
    http_port: int = 0

    @property
    def port(self) -> int:
        return self.http_port or self.metrics_port

    @property
    def ready_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/readyz"


@dataclass(frozen=True, slots=True)
class Plan:
    """A platform, ready to be started."""

    platform: str
    data: DataDir
    nats_server: Path
    options: Options
    servers: tuple[Server, ...]
    instances: tuple[Instance, ...]
    capacity: Capacity
    images: str
    """The runtime images that fit this checkout, as the executor takes them: runtime=name,..."""
    streams_due: bool
    """Whether streams are to be made or changed before the services start."""

    @property
    def profile(self) -> Profile:
        return PROFILES[self.options.profile]

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.options.port}"

    @property
    def broker_urls(self) -> str:
        return ",".join(server.url for server in self.servers)

    def save(self) -> None:
        written = asdict(self) | {"data": str(self.data.root), "nats_server": str(self.nats_server)}
        write_private(self.data.plan, json.dumps(written, indent=1))

    @classmethod
    def load(cls, data: DataDir) -> "Plan":
        read: dict[str, Any] = read_json(data.plan)
        return cls(
            platform=read["platform"],
            data=data,
            nats_server=Path(read["nats_server"]),
            options=Options(**read["options"]),
            servers=tuple(Server(**server) for server in read["servers"]),
            instances=tuple(Instance(**instance) for instance in read["instances"]),
            capacity=Capacity(**read["capacity"]),
            images=read["images"],
            streams_due=read["streams_due"],
        )


def server_names(profile: Profile) -> tuple[str, ...]:
    return tuple(f"broker-{number}" for number in range(1, profile.servers + 1))


def instance_names(options: Options) -> tuple[tuple[str, str], ...]:
    """(service, name) of every process, in the order in which the status lists them."""
    counts = {"gateway": 1, "scheduler": options.schedulers, "executor": options.executors, "ai-proxy": 1, "persister": 1}
    return tuple((service, f"{service}-{number}") for service, count in counts.items() for number in range(1, count + 1))


def port_names(options: Options) -> tuple[str, ...]:
    """Every port a platform needs, but for its HTTP port."""
    servers = server_names(PROFILES[options.profile])
    kinds = ("client", "monitor", "route") if len(servers) > 1 else ("client", "monitor")
    brokers = [f"{server}.{kind}" for server in servers for kind in kinds]
    return (*brokers, *(f"{name}.metrics" for _, name in instance_names(options)))


def servers(profile: Profile, ports: dict[str, int]) -> tuple[Server, ...]:
    return tuple(
        Server(name, ports[f"{name}.client"], ports[f"{name}.monitor"], ports.get(f"{name}.route"))
        for name in server_names(profile)
    )


def instances(options: Options, ports: dict[str, int]) -> tuple[Instance, ...]:
    return tuple(
        Instance(service, name, ports[f"{name}.metrics"], options.port if service == "gateway" else 0)
        for service, name in instance_names(options)
    )


def service_environment(plan: Plan, instance: Instance, *, credentials: Path) -> dict[str, str]:
    """Everything a service process is told; each service's `config.py` says what it means."""
    told = {
        "HEARTH_NATS_URL": plan.broker_urls,
        "HEARTH_NATS_CREDENTIALS": str(credentials),
        "HEARTH_INSTANCE": instance.name,
        "HEARTH_PLATFORM": plan.platform,
        "HEARTH_PROFILE": plan.profile.name,
        "HEARTH_REPLICAS": str(plan.profile.servers),
        "HEARTH_DATA_DIR": str(plan.data.root),
        "HEARTH_METRICS_PORT": str(instance.metrics_port),
        "PYTHONUNBUFFERED": "1",
    }
    if instance.service == "gateway":
        told |= {
            "HEARTH_HTTP_HOST": LOOPBACK,
            "HEARTH_HTTP_PORT": str(instance.http_port),
            "HEARTH_ADMIN_KEY_FILE": str(plan.data.admin_key),
        }
    return told


def service_defaults(plan: Plan) -> dict[str, str]:
    """What a service process is told unless the environment of `up` says otherwise."""
    return {
        "HEARTH_STORE_FOLDERS": str(plan.data.store),
        "HEARTH_DRAIN_S_MAX": str(DRAIN_S_MAX),
        "HEARTH_IMAGES": plan.images,
    }


def module(service: str) -> str:
    """The package that `python -m` starts."""
    return f"hearth_{service.replace('-', '_')}"


def stop_order(services: Iterable[str]) -> list[list[str]]:
    """Who stops with whom, and after whom.

    Intake first; executors then finish or hand back what they run; schedulers place what was handed back; the persister
    stores what that made; the broker goes last, since everyone's last words travel through it.
    """
    phases = [["gateway"], ["executor"], ["scheduler", "ai-proxy"], ["persister"], ["broker"]]
    present = set(services)
    return [[service for service in phase if service in present] for phase in phases]
