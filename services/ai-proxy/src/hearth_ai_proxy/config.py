"""Settings of the ai-proxy."""

from pydantic import Field

from hearth_kit.settings import ServiceSettings


class Settings(ServiceSettings):
    ollama_host: str = Field("", description="Address of the model server, such as http://10.0.0.5:11434; empty: there is none.")
    ai_in_flight_max: int = Field(64, ge=1, le=1024, description="Requests in hand at once; more wait in the broker.")
