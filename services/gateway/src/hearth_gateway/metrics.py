"""Every metric of the gateway."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

REQUESTS: Final = Counter("hearth_gateway_requests_total", "HTTP requests answered.", ("route", "status"))
CALL_SECONDS: Final = Histogram(
    "hearth_gateway_call_seconds", "Sync calls from the request's head to the answer.", ("start",),
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)  # fmt: skip
REFUSED: Final = Counter("hearth_gateway_refused_total", "Requests refused, by code.", ("code",))
HELD: Final = Gauge("hearth_gateway_held_calls", "Sync calls this process holds.")
REPUBLISHED: Final = Counter("hearth_gateway_republished_total", "Held calls published again after a reconnect.")
DROPPED_REPLIES: Final = Counter("hearth_gateway_dropped_replies_total", "Replies of superseded dispatches.")
FROM_RECORDS: Final = Counter("hearth_gateway_from_records_total", "Held calls answered from their record, the reply being lost.")
BODY_BYTES: Final = Counter("hearth_gateway_body_bytes_total", "Bytes of bodies passed by reference.", ("direction",))
DEPLOYS: Final = Counter("hearth_gateway_deploys_total", "Deployments, by outcome.", ("outcome",))
STREAMS_OPEN: Final = Gauge("hearth_gateway_event_streams", "Open event streams.")
SLOW_CLIENTS: Final = Counter("hearth_gateway_slow_clients_total", "Connections closed for standing still.", ("where",))

_REQUESTS: dict[tuple[str, int], Counter] = {}


def requests(route: str, status: int) -> None:
    """Count one, without looking its labels up anew each time."""
    child = _REQUESTS.get((route, status))
    if child is None:
        child = _REQUESTS[route, status] = REQUESTS.labels(route, str(status))
    child.inc()
