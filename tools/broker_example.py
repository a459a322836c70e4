"""Write deploy/nats/example*.conf: what the embedded broker of a small platform runs with, passwords taken out."""

import re
import tempfile
from pathlib import Path

from hearth_cli.local.broker_config import PROFILES, Capacity, Server, server_text
from hearth_cli.local.broker_users import BrokerUsers, Rules
from hearth_cli.local.data_dir import DataDir
from hearth_contracts import registry, streams

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "nats"


def texts() -> dict[str, str]:
    """The files by name."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataDir(Path(folder) / "data")
        data.make()
        users = BrokerUsers(data=data)
        users.start(rules=Rules.from_contracts(), tenants=("default",))
        for service in registry.SERVICES:
            users.issue(service, f"{service}-1" if service != registry.EXECUTOR else "executor-1-00000000")
        secret = (data.broker_config / "users.conf").read_text(encoding="utf-8")
    server = Server("broker-1", 4222, 8222)
    text = server_text(
        server,
        platform="example",
        peers=(server,),
        profile=PROFILES["single"],
        capacity=Capacity(streams.MEMORY_BYTES_MAX * 11 // 10, streams.FILE_BYTES_MAX * 11 // 10),
        store=Path("/var/lib/hearth/broker"),
    )
    return {
        "example.conf": text.replace("users.conf", "example-users.conf"),
        "example-users.conf": re.sub(r'password: "[0-9a-f]{32}"', 'password: "CHANGE-ME"', secret),
    }


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
