"""`hearth.v1.invoke.<tenant>.<function>`: a call without HTTP, by request and reply on the bus.

Who may ask for which tenant is decided by the broker: only the tenant's own account reaches its subjects.
"""

import logging
from typing import Final

from hearth_contracts import names, subjects
from hearth_contracts.calls import INLINE_BYTES_MAX, Body
from hearth_contracts.enums import State
from hearth_gateway import metrics
from hearth_gateway.adapters.keyring import KeyRing
from hearth_gateway.calls import refusals
from hearth_gateway.calls.bodies import Input
from hearth_gateway.calls.custody import HandedOff
from hearth_gateway.calls.invoker import Invoker, Wish
from hearth_gateway.domain import endings
from hearth_gateway.errors import GatewayError, Problem, TooLarge, Unavailable
from hearth_kit.background import Background
from hearth_kit.bus import Bus, Subscription
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_kit.tracing import Tracer

_log = logging.getLogger(__name__)

QUEUE: Final = "gateways"
#: Replies of requests: an inbox, or the broker's own name for one in another account. Anything else could be a stream's
#: subject, and the answer an event that the asker may not publish (DELIVERY rule 15).
_INBOXES: Final = ("_INBOX.", "_R_.")
_SPAN: Final = "hearth.v1.invoke"


class DirectInvoke:
    def __init__(self, *, bus: Bus, clock: Clock, tracer: Tracer, invoker: Invoker, keyring: KeyRing) -> None:
        self._bus = bus
        self._clock = clock
        self._tracer = tracer
        self._invoker = invoker
        self._keyring = keyring
        self._tasks = Background("direct-invoke")
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(subjects.INVOKE_ALL, self._asked, queue=QUEUE)

    async def stop(self) -> None:
        """Take no more; what runs is answered."""
        if self._subscription is not None:
            await self._subscription.stop()

    async def drain(self, timeout_s: float) -> None:
        await self._tasks.drain(timeout_s)

    def _asked(self, message: Message) -> None:
        if message.reply and not message.reply.startswith(_INBOXES):
            _log.warning("a request whose reply is no inbox is not taken", extra={"subject": message.subject})
            return
        self._tasks.start(self._answer(message))

    async def _answer(self, message: Message) -> None:
        headers: dict[str, str] = {}
        try:
            status, body = await self._call(message, headers)
        except GatewayError as error:
            status, body = _refused(error.problem, headers)
        except BusError as error:
            status, body = _refused(refusals.of_bus(error).problem, headers)
        except HandedOff:
            status, body = _refused(Unavailable("the gateway stops; the call goes on").problem, headers)
        metrics.requests(_SPAN, status)
        headers["Hearth-Status"] = str(status)
        try:
            message.respond(body, headers)
        except BusError as error:
            _log.warning("an answer could not be sent: %s", error)

    async def _call(self, message: Message, headers: dict[str, str]) -> tuple[int, bytes]:
        tenant, function = message.subject.split(".")[-2:]
        started = self._clock.now()
        above = self._tracer.root(message.traceparent)
        server = above.child()
        headers["traceparent"] = server.header
        self._keyring.count(f"tenant:{tenant}")
        version = await self._invoker.version(tenant, function)
        self._invoker.admit(version, sync=bool(message.reply))
        if len(message.body) > INLINE_BYTES_MAX:
            raise TooLarge(f"a body on the bus has at most {INLINE_BYTES_MAX} bytes", fix="send larger ones over HTTP")
        job = names.new_job(function, started)
        headers["Hearth-Job"] = job
        kind = message.headers.get("Content-Type", "application/json")
        wanted = Input(Body(content_type=kind, size=len(message.body)), message.body)
        wish = Wish(job=job, version=version, input=wanted, submitted_at=started, caller="bus")
        if not message.reply:  # a plain publish: nobody waits
            await self._invoker.submit(wish, server)
            return 202, b""
        held = await self._invoker.sync(wish, server)
        answer = await held.future
        headers["Hearth-Start"] = answer.ending.start.value
        self._tracer.span(
            server, f"process {_SPAN}", parent=above.span_id, start=started, end=self._clock.now(), kind="server",
            attributes={"faas.name": function, "faas.invocation_id": job, "messaging.system": "nats"},
        )  # fmt: skip
        problem = endings.failure(answer.ending)
        if problem is not None:
            return _refused(problem, headers)
        assert answer.ending.state is State.SUCCESS
        if answer.ending.result.object:
            return _refused(
                TooLarge(
                    "the result does not fit a message", fix=f"fetch it with GET /v1/jobs/{job}/result", extra={"job": job}
                ).problem, headers,
            )  # fmt: skip
        headers["Content-Type"] = answer.ending.result.content_type.replace("\r", "").replace("\n", "")
        return 200, answer.body


def _refused(problem: Problem, headers: dict[str, str]) -> tuple[int, bytes]:
    headers["Content-Type"] = "application/problem+json"
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(problem.retry_after_s)))
    return problem.status, problem.body()
