"""Settings of the scheduler, read once."""

from pydantic import Field

from hearth_kit.settings import ServiceSettings
from hearth_scheduler.domain import fleet


class Settings(ServiceSettings):
    ack_wait_s: float = Field(
        30, gt=0, le=3600, description="Seconds after which a run that its executor says nothing of is delivered again."
    )
    suspect_after_s: float = Field(
        fleet.SUSPECT_S, gt=0, description="Seconds of silence after which an executor is given nothing new."
    )
    dead_after_s: float = Field(
        fleet.DEAD_S,
        gt=0,
        description="Seconds of silence after which an executor's runs are placed elsewhere; above its own limit of 8.",
    )
    sweep_s: float = Field(30, gt=0, description="Seconds between two looks for jobs that nobody holds any more.")
    losses_max: int = Field(
        3, ge=0, le=100, description="How often a job whose attempts are used up is run again because its executor died."
    )
    replicas: int = Field(1, ge=1, le=5, description="Copies of a stream in memory when it is made again: the number of brokers.")
