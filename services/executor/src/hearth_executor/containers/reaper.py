"""Removes containers that a dead executor left behind: at the start, and on a timer.

Containers are told apart by label; another platform's are not even listed.
"""

import logging
from collections.abc import Callable, Collection

import aiodocker

from hearth_executor.containers import profile
from hearth_executor.containers.engine import Engine
from hearth_executor.domain.orphans import Found, orphans
from hearth_executor.errors import BackendUnavailable

_log = logging.getLogger(__name__)

#: Seconds between two looks. PROMISES 59: orphans are gone within 30 s.
EVERY_S = 10.0


class Reaper:
    def __init__(self, *, engine: Engine, owner: profile.Owner, known: Callable[[], Collection[str]]) -> None:
        self._engine = engine
        self._owner = owner
        self._known = known
        self._dead = set[tuple[str, str]]()

    def executor_died(self, name: str, boot: str) -> None:
        """Whoever knows says that an executor of this platform on this engine will not come back."""
        self._dead.add((name, boot))

    async def sweep(self) -> int:
        """One look; how many were removed. An engine that does not answer is asked again next time."""
        try:
            # What is known is looked at after the list came, so that a container made meanwhile is no orphan.
            listed = await self._engine.list({profile.LABEL_PLATFORM: self._owner.platform})
        except (BackendUnavailable, aiodocker.DockerError) as error:
            _log.warning("orphans cannot be looked for: %s", error)
            return 0
        found = [
            Found(
                id=container.id,
                name=container.name,
                executor=container.labels.get(profile.LABEL_EXECUTOR, ""),
                boot=container.labels.get(profile.LABEL_BOOT, ""),
            )
            for container in listed
        ]
        removed = 0
        for orphan in orphans(found, executor=self._owner.executor, boot=self._owner.boot, known=self._known(), dead=self._dead):
            try:
                await self._engine.remove(orphan.id)
            except (BackendUnavailable, aiodocker.DockerError) as error:
                _log.warning("orphan %s stays for now: %s", orphan.name, error)
                continue
            removed += 1
            _log.info("orphan removed: %s of %s-%s", orphan.name, orphan.executor, orphan.boot)
        return removed
