"""What the broker's refusals mean to a caller."""

from hearth_gateway.errors import GatewayError, NoBroker, QueueFull, StoreFull, TooLarge, Unavailable
from hearth_kit.errors import BusError, NotConnected, PayloadTooLarge, PublishTimeout, StreamFull, StreamMissing


def of_bus(error: BusError) -> GatewayError:
    match error:
        case StreamFull():
            # The broker says the same for a full subject (this function's queue) and for a full store.
            return QueueFull() if "per subject" in error.detail else StoreFull("the broker's store is full")
        case NotConnected() | PublishTimeout() | StreamMissing():
            return NoBroker()
        case PayloadTooLarge():
            return TooLarge("headers and body together pass what one message may hold")
        case _:
            return Unavailable(f"the broker refused: {error.detail}")
