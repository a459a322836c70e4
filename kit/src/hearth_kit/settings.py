"""Settings every service has, read once from the environment."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Base of each service's `config.py`. Field `x_y` is the variable `HEARTH_X_Y`."""

    model_config = SettingsConfigDict(env_prefix="HEARTH_", frozen=True, extra="ignore")

    nats_url: str = Field("nats://127.0.0.1:4222", description="Broker address, several with commas.")
    nats_credentials: Path | None = Field(None, description="JSON file with `user` and `password`, readable by the owner only.")
    instance: str = Field("local-1", description="Name of this process, such as gateway-1.")
    platform: str = Field("local", description="Id of the platform: marks containers and shows in the status.")
    data_dir: Path = Field(Path(".hearth"), description="Where this process may keep files.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="How much is logged.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Loopback port of /healthz, /readyz and /metrics; 0: none.")
    traces_per_second: float = Field(
        10, ge=0, description="New traces sampled a second at most; callers' own decisions are kept."
    )
    otlp_endpoint: str = Field(
        "", description="OTLP over HTTP: spans go to this address too.", alias="OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    drain_s_max: float = Field(30, ge=0, description="Seconds a stop may take before work is handed back by force.")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        try:
            self.broker_login()
        except OSError as error:
            raise ValueError(f"HEARTH_NATS_CREDENTIALS: {self.nats_credentials} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"HEARTH_NATS_CREDENTIALS: {self.nats_credentials} holds no JSON with user and password") from None
        return self

    def broker_login(self) -> tuple[str, str]:
        """User and password, or two empty strings."""
        if self.nats_credentials is None:
            return "", ""
        content = json.loads(self.nats_credentials.read_text())
        return str(content["user"]), str(content["password"])
