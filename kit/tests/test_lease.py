"""One active, the others standing by (DELIVERY rule 6, PROMISES 8)."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hearth_contracts import streams
from hearth_kit import lease, nats_bus
from hearth_kit.clock import SystemClock
from hearth_kit.lease import Role

from .conftest import until

pytestmark = pytest.mark.broker


@pytest.fixture
def short(monkeypatch):
    for name, value in {"TTL_S": 1, "RENEW_S": 0.3, "MARGIN_S": 0.2, "LOOK_S": 0.1, "RETRY_S": 0.05}.items():
        monkeypatch.setattr(lease, name, value)


def role(bus, holder):
    return Role(bus=bus, role="test", holder=holder, clock=SystemClock())


@contextlib.asynccontextmanager
async def another(broker, name):
    async with nats_bus.connect(url=broker.url, instance=name) as bus:
        yield bus


async def test_a_role_has_one_holder_and_is_handed_on_at_once(bus, broker):
    """Given back: the standby hears of it, long before the time to live has passed."""
    async with another(broker, "b") as other:
        async with role(bus, "a").hold() as first:
            standing_by = asyncio.create_task(_hold(other, "b"))
            await asyncio.sleep(0.3)
            assert (first.ours, standing_by.done()) == (True, False)
        given_back_at = time.monotonic()
        second = await asyncio.wait_for(standing_by, 5)
        assert time.monotonic() - given_back_at < 1.5
        assert second.epoch > first.epoch


async def _hold(bus, holder):
    async with role(bus, holder).hold() as held:
        return held


async def test_it_is_kept_for_longer_than_its_time_to_live(bus, broker, short):
    async with another(broker, "b") as other, role(bus, "a").hold() as held:
        standing_by = asyncio.create_task(_hold(other, "b"))
        await asyncio.sleep(2.5)  # longer than the lease lasts: nothing may happen
        assert (held.ours, held.lost.is_set(), standing_by.done()) == (True, False, False)
        standing_by.cancel()


async def test_one_that_cannot_renew_knows_before_the_other_begins(bus, broker, short, monkeypatch):
    async with another(broker, "b") as other, role(bus, "a").hold() as held:

        async def refused(*_, **__):
            raise nats_bus.errors.PublishTimeout

        monkeypatch.setattr(bus, "publish", refused)
        second = asyncio.create_task(_hold(other, "b"))
        await asyncio.wait_for(held.lost.wait(), 3)
        assert not second.done()
        assert (await asyncio.wait_for(second, 3)).epoch > held.epoch


async def test_one_whose_key_was_taken_is_told(bus, short):
    async with role(bus, "a").hold() as held:
        await bus.publish("$KV.LEASES.test", b'{"holder": "thief", "role": "test", "at": 0}')
        await asyncio.wait_for(held.lost.wait(), 2)
        assert not held.ours
    # Not given back: it is the thief's.
    assert b"thief" in (await bus.get_last("KV_LEASES", "$KV.LEASES.test")).message.body
    await bus.purge("KV_LEASES")


async def test_a_renewal_whose_acknowledgement_was_lost_is_its_own(bus, short):
    async with role(bus, "a").hold() as held:
        last = await bus.get_last("KV_LEASES", "$KV.LEASES.test")
        await bus.publish("$KV.LEASES.test", last.message.body, headers={"Nats-TTL": "1s"})  # the same holder, a revision unknown
        await asyncio.sleep(1.5)  # longer than the key lives
        assert held.ours
        assert not held.lost.is_set()


async def test_a_restarted_holder_has_its_role_again_at_once(bus, broker):
    """Same name, new process: it need not wait for its own time to live."""
    async with another(broker, "b") as other:
        holding = role(bus, "a").hold()
        first = await holding.__aenter__()
        began = time.monotonic()
        second = await asyncio.wait_for(_hold(other, "a"), 3)
        assert time.monotonic() - began < 1
        assert second.epoch > first.epoch
        await asyncio.gather(holding.__aexit__(None, None, None), return_exceptions=True)


async def test_epochs_rise_over_a_restart_of_the_broker(own_broker, short):
    async with nats_bus.connect(url=own_broker.url, instance="a") as bus:
        from hearth_kit.provision import provision

        await provision(bus, only=(streams.LEASES,))
        epochs = []
        for _ in range(3):
            async with role(bus, "a").hold() as held:
                epochs.append(held.epoch)
            await asyncio.to_thread(own_broker.kill)
            await asyncio.to_thread(own_broker.start)
            await until(lambda: bus.connected)
        assert epochs == sorted(set(epochs))


async def test_a_short_outage_of_the_broker_does_not_cost_the_role(own_broker):
    async with nats_bus.connect(url=own_broker.url, instance="a") as bus:
        from hearth_kit.provision import provision

        await provision(bus, only=(streams.LEASES,))
        async with role(bus, "a").hold() as held:
            await asyncio.sleep(lease.RENEW_S * 1.2)
            await asyncio.to_thread(own_broker.kill)
            await asyncio.to_thread(own_broker.start)
            await asyncio.sleep(lease.RENEW_S * 2)
            assert (held.ours, held.lost.is_set()) == (True, False)


class Holder:
    """`lease_holder.py` in a process of its own."""

    def __init__(self, broker, name, *modes):
        program = Path(__file__).with_name("lease_holder.py")
        command = [sys.executable, str(program), broker.url, name, *modes]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.claims = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self):
        for line in self.process.stdout:
            if line.endswith("\n"):  # not the half of a line at which it was killed
                at, epoch = line.split()
                self.claims.append((float(at), int(epoch)))

    def signal(self, number):
        os.kill(self.process.pid, number)

    def end(self):
        self.process.kill()
        self.process.wait()
        self._reading.join()
        self.process.stdout.close()


@contextlib.contextmanager
def holder(broker, name, *modes):
    process = Holder(broker, name, *modes)
    try:
        yield process
    finally:
        process.end()


async def stopped_and_continued(broker, *modes):
    """Two processes; the holder is stopped until the other has taken over, then goes on. All claims, in time order."""
    with holder(broker, "one", *modes) as one, holder(broker, "two", *modes) as two:
        await until(lambda: one.claims or two.claims)
        for _ in range(2):
            active, other = (one, two) if (one.claims[-1:] or [(0,)]) > (two.claims[-1:] or [(0,)]) else (two, one)
            before = len(other.claims)
            active.signal(signal.SIGSTOP)
            await until(lambda other=other, before=before: len(other.claims) > before + 20)
            active.signal(signal.SIGCONT)
            await asyncio.sleep(0.2)
    return sorted(one.claims + two.claims)


def overlaps(claims):
    """Moments at which somebody acted under an epoch after a higher one had begun."""
    highest, wrong = 0, 0
    for _, epoch in claims:
        wrong += epoch < highest
        highest = max(highest, epoch)
    return wrong


async def test_two_never_act_at_once_though_one_is_stopped_meanwhile(bus, broker):
    claims = await stopped_and_continued(broker, "short")
    assert len({epoch for _, epoch in claims}) >= 3
    assert overlaps(claims) == 0


async def test_without_the_clock_they_would(bus, broker):
    """Who only waits to be told acts for a moment after a stop, under the epoch of before."""
    assert overlaps(await stopped_and_continued(broker, "short", "unguarded")) > 0


async def test_a_killed_holder_is_followed_within_its_time_to_live_and_a_second(bus, broker):
    """With the times as shipped."""
    with holder(broker, "one", "shipped") as one:
        await until(lambda: one.claims)
        with holder(broker, "two", "shipped") as two:
            await asyncio.sleep(0.5)
            assert not two.claims
            one.signal(signal.SIGKILL)
            killed_at = time.monotonic()
            await until(lambda: two.claims)
            assert two.claims[0][0] - killed_at < lease.TTL_S + 2
            assert two.claims[0][1] > one.claims[-1][1]
