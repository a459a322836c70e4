"""What a call came to, wherever it was learnt: from the reply or from the record."""

from dataclasses import dataclass

from hearth_contracts.calls import Ending, Record


@dataclass(frozen=True, slots=True)
class Answer:
    """How the call ended, and its result as far as it is inline."""

    ending: Ending
    body: bytes


def of_record(record: Record, body: bytes) -> Answer:
    return Answer(record.ending, record.parts(body)[1])
