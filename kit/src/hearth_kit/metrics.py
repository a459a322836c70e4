"""What every service counts of its bus."""

from typing import Final

from prometheus_client import Counter

RECONNECTS: Final = Counter("hearth_bus_reconnects_total", "Times the connection to the broker was made anew.")
REBINDS: Final = Counter("hearth_bus_rebinds_total", "Pulls asked for again because their consumer had gone silent.")
REPEATS: Final = Counter("hearth_bus_repeats_total", "Publishes and questions sent again for want of an answer.")
SPANS_DROPPED: Final = Counter("hearth_spans_dropped_total", "Finished spans that could not be kept or sent.")
