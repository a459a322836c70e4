"""The real broker with the configuration that `up` writes: who may do what, and what a reload disturbs."""

import asyncio
import contextlib
import json
import runpy
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from hearth_cli.local import broker_binary, broker_users, ports, supervise
from hearth_cli.local.broker_config import PROFILES, Capacity, Server, server_text
from hearth_cli.local.broker_users import BOOTSTRAP, LISTENER, BrokerUsers, Rules, publisher
from hearth_cli.local.data_dir import DataDir, read_json
from hearth_cli.local.plan import Options, Plan

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.broker

Until = Callable[[Callable[[], bool]], None]


@dataclass
class Running:
    data: DataDir
    server: Server
    users: BrokerUsers
    plan: Plan
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        program = supervise.broker_program(self.plan, self.server)
        with (self.data.logs / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(program.command, stderr=log)
        until = time.monotonic() + 40
        while time.monotonic() < until:
            with contextlib.suppress(OSError, KeyError):
                assert broker_users.settings(self.server)["jetstream"]["config"]
                return
            assert self.process.poll() is None, (self.data.logs / "broker.log").read_text()
            time.sleep(0.02)
        raise AssertionError("the broker did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def reload(self) -> None:
        assert self.process is not None
        broker_users.reload(self.server, self.process.pid)

    async def connect(self, name: str, **options: object) -> Client:
        login = read_json(self.users.credentials(name))
        settings = {"servers": self.server.url, "allow_reconnect": False, "max_reconnect_attempts": 0, **options}
        return await nats.connect(
            user=login["user"],
            password=login["password"],
            inbox_prefix=f"_INBOX.{name}",
            **settings,  # type: ignore[arg-type]
        )


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Running]:
    data = DataDir(tmp_path / "data")
    data.make()
    chosen = ports.choose(("client", "monitor"), {})
    server = Server("broker-1", chosen["client"], chosen["monitor"])
    users = BrokerUsers(data=data)
    users.start(rules=Rules.from_contracts(), tenants=("default",))
    plan = Plan(
        data.platform(),
        data,
        broker_binary.find().path,
        Options(),
        (server,),
        (),
        Capacity(1 << 30, 1 << 32),
        images="",
        streams_due=False,
    )
    running = Running(data, server, users, plan)
    running.start()
    yield running
    running.stop()


@pytest.fixture
async def owner(broker: Running) -> AsyncIterator[Client]:
    """The user that makes the streams."""
    connection = await broker.connect(BOOTSTRAP)
    yield connection
    await connection.close()


async def test_it_runs_with_the_settings_it_was_given(broker: Running) -> None:
    supervise.check_settings(broker.plan)
    says = broker_users.settings(broker.server)
    assert says["jetstream"]["config"]["sync_interval"] == 120_000_000_000
    assert says["system_account"] == "SYS"


@pytest.mark.parametrize("setting", ["js_ack_fc_v2: false", "strict: true", 'sync_interval: "2m"', "max_payload: 1MB"])
async def test_a_setting_that_is_missing_is_noticed(broker: Running, setting: str) -> None:
    other = {
        "js_ack_fc_v2: false": "js_ack_fc_v2: true",
        "strict: true": "strict: false",
        'sync_interval: "2m"': 'sync_interval: "1m"',
    }
    broker.stop()
    program = supervise.broker_program(broker.plan, broker.server)
    file = Path(program.command[-1])
    assert setting in file.read_text()
    file.write_text(file.read_text().replace(setting, other.get(setting, "max_payload: 2MB")))
    broker.process = subprocess.Popen(program.command, stderr=subprocess.DEVNULL)
    says_something(broker)
    with pytest.raises(supervise.BrokerUnfit, match=setting.split(":", maxsplit=1)[0]):
        supervise.check_settings(broker.plan)


def says_something(broker: Running) -> None:
    until = time.monotonic() + 40
    while time.monotonic() < until:
        with contextlib.suppress(OSError, KeyError):
            assert broker_users.settings(broker.server)["jetstream"]["config"]
            return
        time.sleep(0.02)
    raise AssertionError("the broker did not start")


async def test_every_secret_is_for_its_owner_alone(broker: Running) -> None:
    files = [*broker.data.credentials.iterdir(), broker.data.broker_config / "users.conf", broker.data.admin_key]
    assert len(files) >= 5
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert len(read_json(broker.users.credentials(BOOTSTRAP))["password"]) == 32


async def test_more_than_a_thousand_functions_have_a_consumer_each(broker: Running, owner: Client) -> None:
    stream = owner.jetstream()
    await stream.add_stream(StreamConfig(name="JOBS", subjects=["hearth.v1.jobs.>"], retention=RetentionPolicy.WORK_QUEUE))
    for number in range(1_010):
        subject = f"hearth.v1.jobs.t.f{number}"
        config = {"name": f"c{number}", "durable_name": f"c{number}", "ack_policy": "explicit", "filter_subject": subject}
        body = json.dumps({"stream_name": "JOBS", "config": config}).encode()
        answer = await owner.request(f"$JS.API.CONSUMER.CREATE.JOBS.c{number}.{subject}", body, timeout=5)
        assert "error" not in json.loads(answer.data), answer.data


async def test_a_user_added_by_a_reload_may_connect_and_nobody_notices(broker: Running, owner: Client) -> None:
    """What ADR 0002 rests on: pulls in flight on both kinds of stream go on, no connection drops, nothing is delivered twice."""
    disturbed: list[str] = []

    async def note(*what: object) -> None:
        disturbed.append(str(what))

    service = await broker.connect(BOOTSTRAP, disconnected_cb=note, error_cb=note, closed_cb=note)
    jet = service.jetstream()
    received: dict[str, list[bytes]] = {"JOBS": [], "CALLS": []}
    for name, storage in (("JOBS", StorageType.FILE), ("CALLS", StorageType.MEMORY)):
        subject = f"hearth.v1.{name.lower()}.>"
        await jet.add_stream(StreamConfig(name=name, subjects=[subject], retention=RetentionPolicy.WORK_QUEUE, storage=storage))
        await jet.pull_subscribe(subject, durable="scheduler")
        await pull(service, name, received[name], batch=20_000)
    published, worst_s, done = 0, 0.0, asyncio.Event()

    async def publish() -> None:
        nonlocal published, worst_s
        while not done.is_set():
            began = time.perf_counter()
            await jet.publish("hearth.v1.jobs.t.f", b"%d" % published)
            await jet.publish("hearth.v1.calls.t.f", b"%d" % published)
            worst_s = max(worst_s, time.perf_counter() - began)
            published += 1

    load = asyncio.create_task(publish())
    previous = None
    for number in range(20):
        life = f"executor-1-{number:08x}"
        broker.users.issue("executor", life, replaces=previous)
        broker.users.issue_tenant(f"tenant{number}")
        await asyncio.to_thread(broker.reload)
        for name in (life, publisher(f"tenant{number}")):
            connection = await broker.connect(name)
            await connection.close()
        previous = life
    done.set()
    await load
    await eventually(lambda: len(received["CALLS"]) >= published and len(received["JOBS"]) >= published)
    assert published >= 50
    assert disturbed == []
    assert [len(received[name]) for name in received] == [published, published]
    assert all(len(set(messages)) == published for messages in received.values())
    assert worst_s < 2
    await service.close()


async def test_a_user_who_is_taken_away_is_cut_off(broker: Running) -> None:
    broker.users.issue("executor", "executor-1-aaaaaaaa")
    await asyncio.to_thread(broker.reload)
    closed = asyncio.Event()

    async def note() -> None:
        closed.set()

    async def ignore(error: Exception) -> None:
        pass

    old = await broker.connect("executor-1-aaaaaaaa", closed_cb=note, error_cb=ignore)
    login = read_json(broker.users.credentials("executor-1-aaaaaaaa"))
    broker.users.issue("executor", "executor-1-bbbbbbbb", replaces="executor-1-aaaaaaaa")
    await asyncio.to_thread(broker.reload)
    await asyncio.wait_for(closed.wait(), 10)
    assert not old.is_connected
    assert "Authorization Violation" in await greeting(broker.server, login)


async def test_a_configuration_that_does_not_parse_changes_nothing(broker: Running, owner: Client) -> None:
    (broker.data.broker_config / "users.conf").write_text("accounts {")
    with pytest.raises(broker_users.BrokerUnfit):
        await asyncio.to_thread(broker_users.reload, broker.server, broker.process.pid, wait_s=1)  # type: ignore[union-attr]
    assert owner.is_connected
    await owner.flush()


async def test_a_tenants_reply_subject_cannot_reach_the_services(broker: Running, owner: Client) -> None:
    """The broker acknowledges an event to whatever reply subject was set: into the tenant's own account, never past it."""
    await owner.jetstream().add_stream(StreamConfig(name="EVENTS", subjects=["hearth.v1.events.>"]))
    stray: list[str] = []

    async def heard(message: object) -> None:
        stray.append(message.subject)  # type: ignore[attr-defined]

    await owner.subscribe("hearth.v1.jobs.>", cb=heard)
    await owner.flush()
    tenant = await broker.connect(publisher("default"))
    await tenant.publish("hearth.v1.events.default.camera", b"1", reply="hearth.v1.jobs.default.f")
    answer = await tenant.request("hearth.v1.events.default.camera", b"2", timeout=5)
    assert json.loads(answer.data) == {"stream": "EVENTS", "seq": 2}
    await owner.flush()
    assert stray == []
    await tenant.close()


async def test_a_direct_call_crosses_and_its_answer_comes_back(broker: Running) -> None:
    broker.users.issue("gateway", "gateway-1")
    await asyncio.to_thread(broker.reload)
    gateway = await broker.connect("gateway-1")

    async def answer(message: object) -> None:
        await message.respond(b"hello")  # type: ignore[attr-defined]

    await gateway.subscribe("hearth.v1.invoke.*.*", cb=answer)
    await gateway.flush()
    tenant = await broker.connect(publisher("default"))
    assert (await tenant.request("hearth.v1.invoke.default.greet", b"{}", timeout=5)).data == b"hello"
    await gateway.close()
    await tenant.close()


@pytest.mark.parametrize(
    "subject", ["hearth.v1.events.other.x", "hearth.v1.jobs.default.f", "$JS.API.STREAM.NAMES", "$SYS.REQ.SERVER.PING"]
)
async def test_a_tenant_reaches_nothing_else(broker: Running, owner: Client, subject: str) -> None:
    heard: list[str] = []

    async def hear(message: object) -> None:
        heard.append(message.subject)  # type: ignore[attr-defined]

    async def ignore(error: Exception) -> None:
        pass

    await owner.subscribe("hearth.>", cb=hear)
    await owner.flush()
    tenant = await broker.connect(publisher("default"), error_cb=ignore)
    with pytest.raises(nats.errors.Error):
        await tenant.request(subject, b"", timeout=0.3)
    await owner.flush()
    assert heard == []
    await tenant.close()


async def test_each_profile_is_a_configuration_the_server_takes(tmp_path: Path) -> None:
    binary = broker_binary.find()
    (tmp_path / "users.conf").write_text("accounts { SYS {}, HEARTH { jetstream: enabled } }")
    for profile in PROFILES.values():
        servers = tuple(Server(f"b{n}", 20_000 + n, 20_010 + n, 20_020 + n) for n in range(profile.servers))
        text = server_text(
            servers[0], platform="p", peers=servers, profile=profile, capacity=Capacity(1 << 20, 1 << 20), store=tmp_path
        )
        (tmp_path / "n.conf").write_text(text)
        checked = subprocess.run([binary.path, "-c", tmp_path / "n.conf", "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("answer", "fit"),
    [
        ("nats-server: v2.15.1", True),
        ("nats-server: v2.14.0", True),
        ("nats-server: v2.13.9", False),
        ("v3.0.0", False),
        ("?", False),
    ],
)
def test_only_known_versions_pass(answer: str, *, fit: bool) -> None:
    if fit:
        broker_binary.gate(answer, Path("nats-server"))
    else:
        with pytest.raises(broker_binary.BrokerUnfit):
            broker_binary.gate(answer, Path("nats-server"))


async def pull(client: Client, stream: str, into: list[bytes], *, batch: int) -> None:
    """One long pull request, as the services keep it: outstanding while the reloads happen."""

    async def take(message: object) -> None:
        if message.reply:  # type: ignore[attr-defined]
            into.append(message.data)  # type: ignore[attr-defined]
            await message.respond(b"+ACK")  # type: ignore[attr-defined]

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=take)
    request = {"batch": batch, "expires": 60_000_000_000, "idle_heartbeat": 5_000_000_000}
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.scheduler", json.dumps(request).encode(), reply=inbox)
    await client.flush()


async def greeting(server: Server, login: dict[str, str]) -> str:
    """What the broker says to someone who tries this name and password."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        await reader.readline()
        writer.write(f"CONNECT {json.dumps({'user': login['user'], 'pass': login['password'], 'verbose': True})}\r\n".encode())
        return (await asyncio.wait_for(reader.readline(), 10)).decode()
    finally:
        writer.close()
        await writer.wait_closed()


async def eventually(condition: Callable[[], bool], *, within_s: float = 15) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "did not come about"
        await asyncio.sleep(0.01)


def test_the_example_for_a_broker_of_ones_own_is_what_the_code_writes() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "broker_example.py"))
    for name, text in tool["texts"]().items():
        assert (ROOT / "deploy" / "nats" / name).read_text() == text, f"run .venv/bin/python tools/broker_example.py for {name}"


async def test_the_listener_hears_events_and_can_say_nothing(broker: Running, owner: Client) -> None:
    heard: list[str] = []
    refused = asyncio.Event()

    async def hear(message: object) -> None:
        heard.append(message.subject)  # type: ignore[attr-defined]

    async def note(error: Exception) -> None:
        refused.set()

    await owner.subscribe("hearth.>", cb=hear)
    await owner.flush()
    listener = await broker.connect(LISTENER, error_cb=note)
    await listener.publish("hearth.v1.events.default.forged", b"")
    await asyncio.wait_for(refused.wait(), 10)
    await owner.flush()
    assert heard == []
    await listener.close()
