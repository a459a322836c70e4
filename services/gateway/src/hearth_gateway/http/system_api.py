"""Routes about the platform itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import HTMLResponse, JSONResponse, Response

from hearth_gateway.adapters.fleet import Fleet
from hearth_gateway.http import pages
from hearth_gateway.http.routing import Ask, Endpoint
from hearth_kit.bus import Bus


@dataclass(slots=True, eq=False)
class SystemRoutes:
    platform: str
    bus: Bus
    fleet: Fleet
    problems: Callable[[], Mapping[str, str]]
    held: Callable[[], int]
    document: Callable[[], dict[str, Any]]

    def endpoints(self) -> list[Endpoint]:
        tag = "system"
        return [
            Endpoint("GET", "/v1/system", self.system, "The fleet, its pools, queues and streams", tag),
            Endpoint("GET", "/healthz", self.health, "Whether this process lives", tag, access="open"),
            Endpoint("GET", "/readyz", self.ready, "Whether it can serve, and what to mend", tag, access="open",
                answers={200: "ready", 503: "what is wrong, each with its fix"}),
            Endpoint("GET", "/metrics", self.metrics, "Prometheus metrics (from elsewhere than this machine: with a key)", tag,
                access="loopback"),
            Endpoint("GET", "/openapi.json", self.openapi, "This document", tag, access="open"),
            Endpoint("GET", "/docs", self.docs, "This document as a page", tag, access="open"),
            Endpoint("GET", "/", self.front, "What runs here", tag, access="open"),
        ]  # fmt: skip

    async def system(self, ask: Ask) -> Response:
        seen = self.fleet.snapshot()
        if not ask.caller.key.admin:
            seen = _of_tenant(seen, ask.tenant)
        return JSONResponse(
            {
                "platform": self.platform, "gateway": self.bus.instance, "broker": {"connected": self.bus.connected},
                "problems": {**self.problems(), **self.fleet.store_problems()}, "held_calls": self.held(), **seen,
            }
        )  # fmt: skip

    async def health(self, _: Ask) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Ask) -> Response:
        wrong = dict(self.problems())
        missing = self.fleet.away()
        warnings = self.fleet.store_problems()  # no reason to turn callers away
        if missing:
            warnings["capacity"] = f"{missing}: sync calls are answered 503 until one is"
        return JSONResponse(
            {"status": "not ready" if wrong else "ready", "problems": wrong, "warnings": warnings}, 503 if wrong else 200
        )

    async def metrics(self, _: Ask) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, _: Ask) -> Response:
        return JSONResponse(self.document())

    async def docs(self, _: Ask) -> Response:
        return HTMLResponse(pages.docs(self.document()), headers=pages.HEADERS)

    async def front(self, _: Ask) -> Response:
        return HTMLResponse(pages.front(self.platform, {**self.problems(), **self.fleet.store_problems()}), headers=pages.HEADERS)


def _of_tenant(seen: dict[str, Any], tenant: str) -> dict[str, Any]:
    """A tenant sees the machines, but of functions only its own."""
    mine = f"{tenant}."

    def own(table: Mapping[str, int]) -> dict[str, int]:
        return {name: count for name, count in table.items() if name.startswith(mine)}

    executors = [
        {
            **executor, "warm": own(executor["warm"]), "assigned": own(executor["assigned"]),
            "pools": {**executor["pools"], "warm": own(executor["warm"]), "assigned": own(executor["assigned"])},
        }
        for executor in seen["executors"]
    ]  # fmt: skip
    return {**seen, "executors": executors, "queues": own(seen["queues"])}
