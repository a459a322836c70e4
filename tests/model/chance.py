"""Lives of the model at random: a seed decides who moves and what breaks. Cheap, so that many can be lived."""

import random
from collections.abc import Callable

from tests.model.delivery import Broken, Rules, World

from hearth_contracts.enums import Lane

#: How much of a life is faults.
FAULTS: float = 0.15

Fault = Callable[[World, random.Random], bool]


def broker(world: World, chance: random.Random) -> bool:
    if world.connection >= 2 or world.is_fragile_without:
        return False
    world.crash_broker(heard=chance.random() < 0.5)
    return True


def executor_crash(world: World, chance: random.Random) -> bool:
    alive = [one for one in world.executors if one.state == "alive"]
    if not alive or world.is_fragile(one := chance.choice(alive)):
        return False
    if sum(one.state == "crashed" for one in world.executors) >= 2:
        return False
    world.crash_executor(one)
    return True


def executor_stop(world: World, chance: random.Random) -> bool:
    alive = [one for one in world.executors if one.state == "alive"]
    if not alive or world.is_fragile(one := chance.choice(alive)):
        return False
    world.stop_executor(one)
    return True


def executor_continues(world: World, chance: random.Random) -> bool:
    stopped = [one for one in world.executors if one.state == "stopped"]
    if not stopped:
        return False
    world.continue_executor(chance.choice(stopped), words_in_flight=chance.randint(0, 2))
    return True


def takeover(world: World, chance: random.Random) -> bool:
    if world.schedulers[-1].epoch >= 4:
        return False
    world.take_over(zombie=chance.random() < 0.5)
    return True


def end_of_zombies(world: World, chance: random.Random) -> bool:
    world.end_zombies()
    return True


def redelivery(world: World, chance: random.Random) -> bool:
    letters = world.letters()
    if not letters:
        return False
    world.redeliver(chance.choice(letters))
    return True


def cancel(world: World, chance: random.Random) -> bool:
    job = chance.choice("ab")
    known = job in world.custody or job in world.accepted
    if chance.random() > 0.3 or not known or not world.gateway_alive or world.gateway_stopped:
        return False
    world.cancel(job)
    return True


def gateway_crash(world: World, chance: random.Random) -> bool:
    if chance.random() > 0.2 or not world.gateway_alive:
        return False
    world.crash_gateway()
    return True


def gateway_stop(world: World, chance: random.Random) -> bool:
    world.gateway_stopped = world.gateway_alive and chance.random() < 0.5
    return True


EVERY: tuple[Fault, ...] = (
    broker, executor_crash, executor_stop, executor_continues, takeover, end_of_zombies, redelivery, cancel, gateway_crash, gateway_stop,
)  # fmt: skip


def live(seed: int, rules: Rules, *, steps: int = 60) -> str:
    """What broke in this life, or nothing."""
    chance = random.Random(seed)
    world = World(rules, executors=2)
    try:
        for job, lane in chance.choice(([("a", Lane.SYNC)], [("b", Lane.ASYNC)], [("a", Lane.SYNC), ("b", Lane.ASYNC)])):
            world.submit(job, lane)
        for _ in range(steps):
            choices = list(world.steps())
            if chance.random() < FAULTS or not choices:
                chance.choice(EVERY)(world, chance)
            else:
                chance.choice(choices)[1]()
            world.check()
        world.heal()
    except Broken as broken:
        return str(broken)
    return ""
