"""The same call again, as a new job, with the recorded input."""

from hearth_contracts import names
from hearth_contracts.calls import BODY_BYTES_MAX, Body
from hearth_gateway.calls.bodies import AREA, Input
from hearth_gateway.calls.invoker import Invoker, Wish
from hearth_gateway.errors import InputGone, JobNotFinished
from hearth_gateway.jobs.lookup import Found
from hearth_kit.clock import Clock
from hearth_kit.objects import ObjectMissing, Objects
from hearth_kit.tracing import Context


async def replay(found: Found, *, invoker: Invoker, objects: Objects, clock: Clock, caller: str, server: Context) -> str:
    """Submit it on the async lane, at the function's current version; the new job's id."""
    record = found.record
    if record is None:
        raise JobNotFinished("a job is replayed once it has ended")
    if not record.input.content_type:
        raise InputGone
    version = await invoker.version(found.tenant, record.function)
    invoker.admit(version, sync=False)
    now = clock.now()
    job = names.new_job(record.function, now)
    if record.input.object:
        wanted = Input(await _copied(objects, record.input, f"{job}-in"), b"")
    else:
        inline = record.parts(found.body)[0]
        if len(inline) != record.input.size:
            raise InputGone
        wanted = Input(record.input, inline)
    wish = Wish(job=job, version=version, input=wanted, submitted_at=now, caller=caller, http=record.http, replay_of=record.job)
    await invoker.submit(wish, server)
    return job


async def _copied(objects: Objects, body: Body, object_id: str) -> Body:
    """Large inputs are kept a day from when they were written: the new job gets its own copy."""
    writer = objects.writer(AREA, object_id, bytes_max=BODY_BYTES_MAX, content_type=body.content_type)
    finished = False
    try:
        async for chunk in objects.read(AREA, body.object):
            await writer.write(chunk)
        await writer.finish()
        finished = True
    except ObjectMissing as error:
        raise InputGone from error
    finally:
        if not finished:
            await writer.abandon()
    return body.model_copy(update={"object": object_id})
