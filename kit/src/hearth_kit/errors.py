"""What can go wrong between a service and the broker.

BusError
├── NotConnected        the broker is away and the buffer is full
├── PublishTimeout      no acknowledgement within the deadline
├── PayloadTooLarge     headers, or headers and body, pass the broker's maximum: no later try makes them fit
├── StreamFull          the stream or the subject's share of it is full
├── StreamMissing       no stream takes this subject
├── WrongLastSequence   somebody else wrote first
└── ApiError            the broker refused an administrative request
"""

from typing import ClassVar


class BusError(Exception):
    """Something went wrong between this service and the broker."""

    code: ClassVar[str] = "E_BUS"

    def __init__(self, detail: str = "") -> None:
        super().__init__(f"{self.__doc__} {detail}".strip())
        self.detail = detail


class NotConnected(BusError):
    """The broker is away."""

    code = "E_NO_BROKER"


class PublishTimeout(BusError):
    """No acknowledgement came within the deadline."""

    code = "E_NO_BROKER"


class PayloadTooLarge(BusError):
    """Headers, or headers and body, pass the broker's maximum."""

    code = "E_TOO_LARGE"


class StreamFull(BusError):
    """The stream, or the subject's share of it, is full."""

    code = "E_QUEUE_FULL"


class StreamMissing(BusError):
    """No stream takes this subject."""

    code = "E_NO_BROKER"


class WrongLastSequence(BusError):
    """Somebody else wrote this subject first."""

    code = "E_LOST_RACE"


class ApiError(BusError):
    """The broker refused an administrative request."""

    code = "E_BROKER_API"

    def __init__(self, detail: str, *, api_code: int = 0, err_code: int = 0) -> None:
        super().__init__(detail)
        self.api_code = api_code
        self.err_code = err_code
