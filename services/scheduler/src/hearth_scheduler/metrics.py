"""Every metric of the scheduler, with its meaning."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

ACTIVE: Final = Gauge("hearth_scheduler_active", "1 while this scheduler is the active one.")
EPOCH: Final = Gauge("hearth_scheduler_epoch", "The lease's epoch, in every run it places.")
TAKEN: Final = Counter("hearth_scheduler_taken_total", "Calls, jobs and outcomes that arrived, by where.", ["source"])
PLACED: Final = Counter("hearth_scheduler_placed_total", "Runs placed, by the reason for their executor.", ["reason"])
REJECTED: Final = Counter("hearth_scheduler_rejected_total", "Jobs ended without a run, by reason.", ["reason"])
OUTCOMES: Final = Counter("hearth_scheduler_outcomes_total", "What became of jobs that travelled back.", ["decision"])
DUPLICATES: Final = Counter("hearth_scheduler_duplicates_total", "Deliveries of a call that was in hand or placed already.")
RACES_LOST: Final = Counter("hearth_scheduler_races_lost_total", "Finals that somebody else had recorded first.")
ELSEWHERE: Final = Counter(
    "hearth_scheduler_swallowed_total", "Placements whose id the stream knew already, by what was found.", ["found"]
)
BURIED: Final = Counter("hearth_scheduler_dead_executors_total", "Executors given up after their silence.")
REASSIGNED: Final = Counter("hearth_scheduler_reassigned_total", "Runs taken back from dead executors.")
SWEPT: Final = Counter("hearth_scheduler_swept_total", "Jobs the sweeper ended or brought back.", ["how"])
HELD: Final = Gauge("hearth_scheduler_held_calls", "Calls in hand: being looked up, waiting, being placed.")
OLDEST: Final = Gauge("hearth_scheduler_oldest_wait_seconds", "How long the longest waiting call has waited.")
FREE: Final = Gauge("hearth_scheduler_free_slots", "Slots that are free as far as is known.")
WAIT: Final = Histogram(
    "hearth_scheduler_wait_seconds", "From a call's arrival to its placement.",
    buckets=(0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
)  # fmt: skip
