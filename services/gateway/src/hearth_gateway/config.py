"""The gateway's settings."""

from pathlib import Path

from pydantic import Field

from hearth_kit.settings import ServiceSettings


class Settings(ServiceSettings):
    """Field `x_y` is the variable `HEARTH_X_Y`."""

    http_host: str = Field("127.0.0.1", description="Address to listen on; loopback unless told otherwise.")
    http_port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    admin_key_file: Path | None = Field(
        None, description="The first admin key; made when absent. Default: admin-key in the data folder."
    )
    tenant: str = Field("default", pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="Tenant of the first admin key.")
    rate_per_s: float = Field(10_000, gt=0, description="Requests a second a key may make, unless the key says otherwise.")
    rate_burst: int = Field(20_000, ge=1, description="Requests a key may make at once.")
    held_max: int = Field(20_000, ge=1, description="Sync calls this process holds at most; more are answered 503.")
    connections_max: int = Field(10_000, ge=1, description="Open connections; more are answered 503 and closed.")
    header_s_max: float = Field(10, gt=0, description="Seconds a request's head may take.")
    body_stall_s_max: float = Field(30, gt=0, description="Seconds a body may stand still.")
    write_stall_s_max: float = Field(60, gt=0, description="Seconds a client may read nothing of what was sent.")
    keep_alive_s: int = Field(75, ge=1, description="Seconds an idle connection stays open.")
    heartbeat_s: float = Field(15, gt=0, description="Seconds between comments on a silent event stream.")
    silent_s_max: float = Field(5, gt=0, description="An executor or scheduler not heard for so many seconds counts as away.")
    streams_check_s: float = Field(3, gt=0, description="Seconds between looks at the broker's streams.")

    @property
    def admin_key_path(self) -> Path:
        return self.admin_key_file or self.data_dir / "admin-key"
