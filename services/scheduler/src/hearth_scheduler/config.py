"""The scheduler's settings."""

from pydantic import Field

from hearth_kit.settings import ServiceSettings


class Settings(ServiceSettings):
    ack_wait_s: float = Field(30, gt=0, description="Seconds after which an executor's unsettled run is delivered to it again.")
    suspect_after_s: float = Field(3, gt=0, description="Seconds of silence after which an executor gets no more work.")
    dead_after_s: float = Field(10, gt=0, description="Seconds of silence after which an executor's work is placed again.")
    losses_max: int = Field(3, ge=0, description="How often a job may lose its executor before it is FAILED (lost).")
    sweep_s: float = Field(30, gt=0, description="Seconds between two looks for jobs that nobody owns.")
    orphan_after_s: float = Field(60, gt=0, description="Age at which an unfinished job that nobody owns is taken for lost.")
