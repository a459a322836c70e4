"""Errors of the vocabulary itself.

ContractError
├── InvalidName       a name that may not stand in a subject
└── UndecodableMessage  a message that is not what its subject promises
"""

from typing import ClassVar


class ContractError(Exception):
    """Something said on the bus is not in the vocabulary."""

    code: ClassVar[str] = "E_CONTRACT"


class InvalidName(ContractError, ValueError):
    """A name holds characters that may not stand in a subject."""

    code = "E_INVALID_NAME"

    def __init__(self, field: str, value: str, rule: str) -> None:
        super().__init__(f"{field} {value[:80]!r}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule


class UndecodableMessage(ContractError):
    """A message is not what its subject promises."""

    code = "E_UNDECODABLE"
