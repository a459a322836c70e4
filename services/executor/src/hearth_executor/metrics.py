"""Every metric of the executor, with its meaning."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

RUNS: Final = Counter("hearth_executor_runs_total", "Runs that have ended here, by how.", ["ending"])
INTAKE: Final = Counter("hearth_executor_intake_total", "Runs that arrived, by what was decided about them.", ["verdict"])
STARTS: Final = Counter("hearth_executor_starts_total", "Calls begun, in a sandbox that was warm or made for them.", ["start"])
RACES_LOST: Final = Counter("hearth_executor_races_lost_total", "Finals that somebody else had recorded first.")
HELD: Final = Gauge("hearth_executor_held_runs", "Runs in hand: waiting, running or being recorded.")
WAITING: Final = Gauge("hearth_executor_waiting_runs", "Runs taken in ahead of a freed slot.")
FREE: Final = Gauge("hearth_executor_free_slots", "Slots in which nothing runs.")
WAIT: Final = Histogram(
    "hearth_executor_wait_seconds", "From a run's arrival to its slot.",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
)  # fmt: skip
FUNCTION: Final = Histogram(
    "hearth_executor_function_seconds", "Time in the sandbox.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30, 300),
)  # fmt: skip
COLD: Final = Histogram(
    "hearth_executor_cold_start_seconds", "Time to make a sandbox ready for its first call.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30),
)  # fmt: skip
REPORTS: Final = Counter("hearth_executor_reports_total", "Capacity reports sent.")
LOG_BYTES: Final = Counter("hearth_executor_log_bytes_total", "Bytes printed by functions and kept.")
