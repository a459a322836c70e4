"""Requests to a private model node, and the tokens that come back. Prompts live in memory streams only."""

from pydantic import Field

from hearth_contracts.calls import Meta


class AiRequest(Meta):
    """One request (`ai-request.v1`). Body: the JSON the caller sent."""

    request: str
    asker: str
    tenant: str
    path: str
    model: str
    deadline: float | None = None
    job: str = ""


class AiTokens(Meta):
    """A piece of an answer (`ai-tokens.v1`). Body: the bytes as the node sent them."""

    request: str
    number: int
    last: bool = False
    status: int = 200
    content_type: str = "application/json"
    code: str = ""
    """A stable error code when the proxy itself refused."""
    headers: dict[str, str] = Field(default_factory=dict)
