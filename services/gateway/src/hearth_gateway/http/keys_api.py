"""Routes of API keys: for admins."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.responses import JSONResponse, Response

from hearth_contracts.keys import ApiKey
from hearth_gateway.adapters.keyring import KeyRing
from hearth_gateway.errors import FieldError, InvalidInput
from hearth_gateway.http.routing import Ask, Endpoint

BODY_BYTES_MAX = 16 * 1024


class NewKey(BaseModel):
    """What a new key may do."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=200, description="For people.")
    tenant: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")] | None = Field(
        None, description="Whose functions and jobs it reaches; left out: those of the key that asks."
    )
    admin: bool = Field(False, description="Whether it may manage keys.")
    rate_per_s: float = Field(0, ge=0, le=1_000_000, description="Requests a second; 0: the platform's default.")
    burst: int = Field(0, ge=0, le=1_000_000, description="Requests at once; 0: twice the rate.")


@dataclass(slots=True, eq=False)
class KeyRoutes:
    keyring: KeyRing

    def endpoints(self) -> list[Endpoint]:
        tag = "keys"
        return [
            Endpoint("POST", "/v1/keys", self.make, "Make a key; its secret is told once", tag, access="admin", body=NewKey,
                answers={201: "the key with its secret", 403: "not an admin"}),
            Endpoint("GET", "/v1/keys", self.list, "List keys", tag, access="admin", answers={200: "them", 403: "not an admin"}),
            Endpoint("DELETE", "/v1/keys/{prefix}", self.revoke, "Revoke a key", tag, access="admin",
                answers={204: "revoked", 404: "no such key", 403: "not an admin"}),
        ]  # fmt: skip

    async def make(self, ask: Ask) -> Response:
        raw = await ask.body(bytes_max=BODY_BYTES_MAX)
        try:
            wanted = NewKey.model_validate_json(raw or b"{}")
        except ValidationError as error:
            problems = error.errors(include_url=False)[:20]
            raise InvalidInput(
                "the key's description does not pass its checks",
                errors=[FieldError(".".join(map(str, problem["loc"])) or "body", problem["msg"]) for problem in problems],
            ) from error
        secret, key = await self.keyring.make(
            tenant=wanted.tenant or ask.tenant, name=wanted.name, admin=wanted.admin, rate_per_s=wanted.rate_per_s,
            burst=wanted.burst,
        )  # fmt: skip
        return JSONResponse({"key": secret, **_shown(key)}, 201, {"cache-control": "no-store"})

    async def list(self, _: Ask) -> Response:
        return JSONResponse({"keys": [_shown(key) for key in await self.keyring.all()]})

    async def revoke(self, ask: Ask) -> Response:
        await self.keyring.revoke(ask.path("prefix"), by=ask.caller)
        return Response(status_code=204)


def _shown(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(mode="json")
