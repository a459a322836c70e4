"""Every metric of the scheduler."""

from prometheus_client import Counter, Gauge, Histogram

PLACED = Counter("hearth_scheduler_placed", "Calls placed, by the reason of the place.", ["reason", "lane"])
WAITING = Gauge("hearth_scheduler_waiting", "Calls held, waiting for a place.")
WAITED = Histogram("hearth_scheduler_wait_seconds", "How long a call waited for its place.",
    buckets=(0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60))  # fmt: skip
OLDEST = Gauge("hearth_scheduler_oldest_seconds", "Age of the call that has waited longest.")
RETRIES = Counter("hearth_scheduler_retries", "Attempts after the first.", ["reason"])
REASSIGNED = Counter("hearth_scheduler_reassigned", "Runs of dead executors, placed again.")
FINALS = Counter("hearth_scheduler_finals", "Finals written by the scheduler.", ["reason"])
DEAD = Counter("hearth_scheduler_dead_letters", "Jobs that used up their attempts.")
EXECUTORS = Gauge("hearth_scheduler_executors", "Executors by state.", ["state"])
ACTIVE = Gauge("hearth_scheduler_active", "1 while this process is the active scheduler.")
