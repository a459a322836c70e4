"""Routes of jobs: every call is addressable."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from hearth_contracts import names
from hearth_contracts.calls import ArchiveQuery, Body
from hearth_contracts.enums import Reason, State
from hearth_contracts.errors import InvalidName as BadName
from hearth_gateway.calls.answer import of_record
from hearth_gateway.calls.bodies import AREA
from hearth_gateway.calls.invoker import Invoker
from hearth_gateway.domain import progress
from hearth_gateway.errors import BadRequest, JobNotFinished, ResultGone
from hearth_gateway.http import event_stream, outputs, results, sending
from hearth_gateway.http.routing import Ask, Endpoint, Parameter
from hearth_gateway.http.sending import Receive, Scope, Send
from hearth_gateway.jobs import events, replay, traces, unfinished, view
from hearth_gateway.jobs.cancel import Canceller
from hearth_gateway.jobs.lookup import Found, Jobs
from hearth_kit.clock import Clock
from hearth_kit.objects import ObjectMissing, Objects
from hearth_kit.tracing import Tracer

#: A longer wait is a reconnect: proxies in between give up sooner than anybody here.
WAIT_S_MAX = 600
#: A sync call's record follows its answer by milliseconds: whoever has the answer may ask for a file at once.
RECORD_S_MAX = 1.0
_REPLAY = "/v1/jobs/{job}/replay"


@dataclass(slots=True, eq=False)
class JobRoutes:
    jobs: Jobs
    canceller: Canceller
    invoker: Invoker
    objects: Objects
    clock: Clock
    tracer: Tracer
    heartbeat_s: float

    def endpoints(self) -> list[Endpoint]:
        tag = "jobs"
        gone = {404: "no such job"}
        wait = Parameter("wait", f"seconds to wait for the end, at most {WAIT_S_MAX}", kind="number")
        return [
            Endpoint("GET", "/v1/jobs", self.history, "List jobs: those that have not ended, then the others, newest first", tag, parameters=(
                Parameter("function", "only of this function"), Parameter("state", "PENDING, PROCESSING, SUCCESS or FAILED"),
                Parameter("since", "Unix seconds or RFC 3339"), Parameter("until", "Unix seconds or RFC 3339"),
                Parameter("limit", "1 to 500", kind="integer"), Parameter("cursor", "next of the page before"))),
            Endpoint("GET", "/v1/jobs/{job}", self.show, "A job's state, result and figures", tag, answers={200: "it", **gone},
                parameters=(wait,)),
            Endpoint("DELETE", "/v1/jobs/{job}", self.cancel, "Cancel a job", tag,
                answers={200: "cancelled", 409: "it has ended already", **gone}),
            Endpoint("GET", "/v1/jobs/{job}/events", self.events, "States, logs and the result as they come", tag,
                answers={200: "an event stream", 204: "nothing comes after the final", **gone},
                parameters=(Parameter("last-event-id", "where to go on", where="header"),)),
            Endpoint("GET", "/v1/jobs/{job}/logs", self.logs, "What the function printed; live while it runs", tag,
                answers={200: "text", **gone}, parameters=(Parameter("follow", "0: only what is there now"),)),
            Endpoint("GET", "/v1/jobs/{job}/result", self.result, "The raw result", tag,
                answers={200: "the result", 409: "it has not ended", **gone}, parameters=(wait,)),
            Endpoint("GET", "/v1/jobs/{job}/outputs", self.outputs, "The files a job wrote: name, size, SHA-256", tag,
                answers={200: "them", **gone}),
            Endpoint("GET", "/v1/jobs/{job}/outputs/{file}", self.output, "One output file, or a part of it", tag,
                answers={200: "the file", 206: "the range of it", 304: "it is what If-None-Match names",
                    404: "no such job, or no such file", 409: "it has not ended", 410: "it is no longer kept",
                    416: "the range lies outside of the file"},
                parameters=(wait, Parameter("range", "one range of bytes, such as bytes=0-1023", where="header"),
                    Parameter("if-range", "the ETag that the range is meant for", where="header"),
                    Parameter("if-none-match", "the ETag of a copy", where="header"))),
            Endpoint("GET", "/v1/jobs/{job}/trace", self.trace, "The job's spans", tag, answers={200: "them", **gone}),
            Endpoint("POST", _REPLAY, self.replay, "The same call again", tag, answers={202: "a new job", **gone}),
        ]  # fmt: skip

    async def _found(self, ask: Ask) -> Found:
        found = await self.jobs.find(ask.tenant, ask.path("job"))
        wait_s = ask.number("wait", 0, low=0, high=WAIT_S_MAX)
        return await self.jobs.until_final(found, wait_s) if wait_s else found

    async def history(self, ask: Ask) -> Response:
        ask.only("function", "state", "since", "until", "limit", "cursor")
        function = ask.query("function")
        state = ask.query("state").upper()
        try:
            if function:
                names.name("function", function)
        except BadName as error:
            raise BadRequest(str(error)) from error
        if state and state not in State.__members__:
            raise BadRequest(f"state is one of {', '.join(State)}")
        query = ArchiveQuery(
            tenant=ask.tenant, function=function, state=state, since=ask.time("since"), until=ask.time("until"),
            limit=int(ask.number("limit", 50, low=1, high=500)),
            cursor=ask.query("cursor")[:500],
        )  # fmt: skip
        return Response(await self._page(query), media_type="application/json")

    async def _page(self, query: ArchiveQuery) -> bytes:
        """What has not ended stands first, on the first page."""
        running: list[Any] = []
        if not query.cursor and query.state in ("", State.PENDING, State.PROCESSING):
            running = await unfinished.newest(
                self.jobs, query.tenant, function=query.function, state=query.state, since=query.since, until=query.until,
                limit=query.limit,
            )  # fmt: skip
        if not running:
            return await self.jobs.history(query)
        room = max(1, query.limit - len(running))
        page = json.loads(await self.jobs.history(query.model_copy(update={"limit": room})))
        ended = {row["job"] for row in page["jobs"]}
        return json.dumps({**page, "jobs": [row for row in running if row["job"] not in ended] + page["jobs"]}).encode()

    async def show(self, ask: Ask) -> Response:
        return JSONResponse(view.of(await self._found(ask)))

    async def cancel(self, ask: Ask) -> Response:
        record, body = await self.canceller.cancel(await self.jobs.find(ask.tenant, ask.path("job")))
        return JSONResponse(view.of_record(record, body))

    async def events(self, ask: Ask) -> Any:
        cursor = progress.parse(ask.request.headers.get("last-event-id", ""))
        found = await self.jobs.find(ask.tenant, ask.path("job"))
        if cursor is None:
            return Response(status_code=204)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            await event_stream.send_events(receive, send, self.jobs, found, cursor, heartbeat_s=self.heartbeat_s, headers=())

        return respond

    async def logs(self, ask: Ask) -> Response:
        found = await self.jobs.find(ask.tenant, ask.path("job"))
        kind = "text/plain; charset=utf-8"
        # Whoever cancels a job records it without what it printed: that is where it was heard while it ran, for an hour.
        if found.record is not None and (found.record.log.size or found.record.ending.reason is not Reason.CANCELLED):
            log = found.record.log
            if log.object:
                return StreamingResponse(await self._opened(log), media_type=kind)
            return Response(found.record.parts(found.body)[2], media_type=kind)
        if found.record is not None or ask.query("follow", "1") == "0":
            printed = [log.data async for log in events.logs_after(self.jobs, found.tenant, found.job, 0)]
            return Response(b"".join(printed), media_type=kind)
        return StreamingResponse(events.follow_log(self.jobs, found), media_type=kind)

    async def _opened(self, body: Body) -> AsyncIterator[bytes]:
        if await self.objects.head(AREA, body.object) is None:
            raise ResultGone
        return self.objects.read(AREA, body.object)

    async def result(self, ask: Ask) -> Any:
        found = await self._found(ask)
        record, body = found.record, found.body
        if record is None:
            raise JobNotFinished
        headers = ((b"x-hearth-job", found.job.encode()), (b"x-hearth-start", record.ending.start.value.encode()))
        if record.ending.result.object and await self._missing(record.ending.result):
            raise ResultGone

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await results.deliver(receive, send, self.objects, of_record(record, body), headers)
            except ResultGone as gone:  # since the look a moment ago
                await sending.problem(send, gone.problem, headers)

        return respond

    async def _missing(self, body: Body) -> bool:
        try:
            return await self.objects.head(AREA, body.object) is None
        except ObjectMissing:
            return True

    async def outputs(self, ask: Ask) -> Response:
        found = await self.jobs.find(ask.tenant, ask.path("job"))
        listed = view.outputs(found.job, found.record.ending) if found.record is not None else []
        return JSONResponse({"outputs": listed})

    async def output(self, ask: Ask) -> Any:
        found = await self.jobs.until_final(await self._found(ask), RECORD_S_MAX)
        if found.record is None:
            raise JobNotFinished
        return await outputs.download(ask, found, self.jobs, self.objects)

    async def trace(self, ask: Ask) -> Response:
        return JSONResponse(await traces.of(self.jobs, await self.jobs.find(ask.tenant, ask.path("job"))))

    async def replay(self, ask: Ask) -> Response:
        found = await self.jobs.find(ask.tenant, ask.path("job"))
        started = self.clock.now()
        above = self.tracer.root(ask.request.headers.get("traceparent", ""))
        server = above.child()
        job = await replay.replay(
            found, invoker=self.invoker, objects=self.objects, clock=self.clock, caller=ask.caller.prefix, server=server
        )
        self.tracer.span(
            server, f"POST {_REPLAY}", parent=above.span_id, start=started, end=self.clock.now(), kind="server",
            attributes={"faas.invocation_id": job, "http.response.status_code": 202},
        )  # fmt: skip
        location = f"/v1/jobs/{job}"
        headers = {"location": location, "x-hearth-job": job, "traceparent": server.header}
        return JSONResponse({"job": job, "state": "PENDING", "location": location, "replay_of": found.job}, 202, headers)
