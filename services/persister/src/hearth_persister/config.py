"""Settings of the persister."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from hearth_contracts import names
from hearth_kit.settings import ServiceSettings


class Settings(ServiceSettings):
    store_folders: str = Field(
        "",
        description="Folder stores, `name=path` with commas between; a bare path is the store `local`."
        " Empty: `store` under the data folder.",
    )
    store_ack_wait_s: float = Field(30, gt=0, description="Seconds after which the broker sends an unsettled record again.")
    segment_bytes_max: int = Field(
        4 * 1024 * 1024, ge=64 * 1024, le=64 * 1024 * 1024, description="Bytes of records in one segment, before packing."
    )
    segment_age_s: float = Field(0.7, ge=0.05, le=60, description="Records of one such span of time share a segment.")
    segment_margin_s: float = Field(
        0.2, ge=0.01, le=60, description="Seconds a record may be on its way from the broker to the persister."
    )
    segment_records_max: int = Field(4096, ge=1, le=100_000, description="Records in one segment.")
    records_grace_s: float = Field(
        900, ge=0, description="Seconds a stored record stays in the broker: a late second final is refused meanwhile."
    )
    records_kept_max: int = Field(
        500_000, ge=1, description="Records in the broker beyond which stored ones leave before their grace has passed."
    )
    retention_every_s: float = Field(5, gt=0, description="How often the broker is looked through for records that may leave.")
    store_retry_s: float = Field(0.5, gt=0, description="First wait after a store has failed; it doubles.")
    store_retry_s_max: float = Field(30, gt=0, description="Longest wait after a store has failed.")
    failpoint: str = Field("", description="For tests: the process kills itself at this named step.")

    @model_validator(mode="after")
    def _stores(self) -> Self:
        chosen = self.folders()
        if len({path.resolve() for path in chosen.values()}) < len(chosen):
            raise ValueError("two stores may not share a folder")
        return self

    def folders(self) -> dict[str, Path]:
        """Stores by name, in the order in which they were written down."""
        parts = [part.strip() for part in self.store_folders.split(",") if part.strip()]
        if not parts:
            return {"local": self.data_dir / "store"}
        stores: dict[str, Path] = {}
        for part in parts:
            name, equals, path = part.partition("=")
            if not equals:
                name, path = "local", part
            if names.name("store", name) in stores or not path:
                raise ValueError(f"store {name!r} is named twice, or has no folder")
            stores[name] = Path(path)
        return stores
