"""The oracle: what clients were told, against what the stores hold, read back from disk."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.platform import Told

from hearth_persister import reading


@dataclass(frozen=True)
class Verdict:
    lost: list[str]
    """Told accepted or answered, and in no store."""
    doubled: list[str]
    """In one store more than once."""
    different: list[str]
    """The caller was told something else than is recorded."""
    unequal: list[str]
    """Stores that hold different bytes for a job."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.unequal)


def check(told: Iterable[Told], stores: Iterable[Path]) -> Verdict:
    """Compare every call that was accepted with every store."""
    told = list(told)
    lost: set[str] = set()
    doubled: set[str] = set()
    different: set[str] = set()
    seen: dict[str, bytes] = {}
    unequal: set[str] = set()
    for store in stores:
        records: dict[str, reading.StoredRecord] = {}
        for record in reading.read(store):
            job = record.meta.job
            if job in records:
                doubled.add(job)
            records[job] = record
            digest = record.fingerprint
            if seen.setdefault(job, digest) != digest:
                unequal.add(job)
        for call in told:
            record = records.get(call.job)
            if record is None:
                lost.add(call.job)
            elif call.lane == "sync" and call.status == 200 and record.result != call.body:
                different.add(call.job)
    return Verdict(sorted(lost), sorted(doubled), sorted(different), sorted(unequal))
