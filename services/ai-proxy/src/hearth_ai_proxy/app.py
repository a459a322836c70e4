"""The composition root of the ai-proxy."""

from hearth_ai_proxy.config import Settings
from hearth_ai_proxy.domain import answer
from hearth_ai_proxy.handlers import Requests
from hearth_ai_proxy.service import Service
from hearth_contracts import registry, streams
from hearth_kit import lifecycle


async def serve(settings: Settings) -> None:
    """Run until SIGTERM."""
    async with lifecycle.running(settings, service=registry.AI_PROXY) as life:
        refusal = answer.refusal(settings.ollama_host)
        life.notes["models"] = str(refusal)
        service = Service(bus=life.bus, clock=life.clock, tracer=life.tracer, refusal=refusal)
        requests = Requests(
            bus=life.bus, service=service, stream=streams.AI.name, consumer=streams.AI_CONSUMER,
            in_flight_max=settings.ai_in_flight_max,
        )  # fmt: skip
        await requests.start()
        life.ready()
        await life.stopping.wait()
        await requests.stop(settings.drain_s_max)
