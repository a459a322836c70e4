"""Every metric of the persister."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

RECORDS: Final = Counter("hearth_persister_records_total", "Records made durable.", ["store"])
SEGMENTS: Final = Counter("hearth_persister_segments_total", "Segments written, by what closed them.", ["store", "cause"])
BYTES: Final = Counter("hearth_persister_bytes_total", "Bytes written: packed segments and large bodies.", ["store"])
BODIES: Final = Counter("hearth_persister_bodies_total", "Large bodies copied into objects of their own.", ["store"])
BODIES_MISSING: Final = Counter(
    "hearth_persister_bodies_missing_total", "Large bodies that had left the broker before they could be copied.", ["store"]
)
SKIPPED: Final = Counter("hearth_persister_skipped_total", "Records whose function keeps none.", ["store"])
REPEATED: Final = Counter("hearth_persister_repeated_total", "Records of jobs that the store held already: left out.", ["store"])
UNDECODABLE: Final = Counter("hearth_persister_undecodable_total", "Messages that were no records: put aside whole.", ["store"])
MISSED: Final = Counter(
    "hearth_persister_missed_total", "Sequences that left the broker before an established store had read them.", ["store"]
)
FAILURES: Final = Counter("hearth_persister_failures_total", "Times a store would not take or give something.", ["store"])
LAG: Final = Gauge("hearth_persister_lag_records", "Records in the broker that the store does not hold yet.", ["store"])
UP: Final = Gauge("hearth_persister_store_up", "1 while the store takes what it is given.", ["store"])
ACTIVE: Final = Gauge("hearth_persister_store_active", "1 while this process is the one that writes to the store.", ["store"])
PUT_S: Final = Histogram(
    "hearth_persister_put_seconds", "A segment's write, until durable.", ["store"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)  # fmt: skip
PURGED: Final = Counter("hearth_persister_purged_total", "Records that left the broker because every store has them.")
QUERIES: Final = Counter("hearth_persister_queries_total", "Questions to the archive, by answer.", ["answer"])
