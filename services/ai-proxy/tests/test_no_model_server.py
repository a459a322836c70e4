"""Without a model server every request is answered clearly and at once, and nothing of it is kept."""

import asyncio
import json
import secrets

import pytest

from hearth_ai_proxy.domain import answer
from hearth_ai_proxy.errors import NoModelServer, NotOffered
from hearth_contracts import streams, subjects
from hearth_contracts.ai import AiRequest, AiTokens
from hearth_kit.bus import ConsumerSpec

CONSUMER = ConsumerSpec(streams.AI.name, streams.AI_CONSUMER, ack_wait_s=2)


async def ask(admin, *, prompt: str = "hello", **words) -> tuple[str, asyncio.Future]:
    request = AiRequest(**{
        "request": f"r{secrets.token_hex(8)}", "asker": "gateway-1", "tenant": "default", "path": "/api/chat",
        "model": "tiny:1b", **words,
    })  # fmt: skip
    answered = asyncio.get_running_loop().create_future()
    await admin.subscribe(subjects.ai_tokens(request.asker, request.request), lambda m: answered.done() or answered.set_result(m))
    body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
    await admin.publish(subjects.ai_request(request.model), body, meta=request, contract="ai-request.v1", msg_id=request.request)
    return request.request, answered


async def settled(admin) -> bool:
    for _ in range(200):
        info = await admin.stream_info("AI")
        if info.messages == 0:
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.broker
async def test_a_request_is_answered_with_what_is_missing_and_how_to_set_it(admin, proxy):
    await admin.ensure_consumer(CONSUMER)
    request, answered = await ask(admin)

    message = await asyncio.wait_for(answered, 5)

    tokens = message.meta(AiTokens)
    assert (tokens.request, tokens.number, tokens.last) == (request, 0, True)
    assert (tokens.status, tokens.code) == (503, "E_NO_MODEL_SERVER")
    problem = json.loads(message.body)
    assert (problem["status"], problem["code"]) == (503, "E_NO_MODEL_SERVER")
    assert "HEARTH_OLLAMA_HOST" in problem["detail"]
    assert await settled(admin)


@pytest.mark.broker
async def test_it_waits_quietly_for_its_consumer_and_then_answers_what_waited(admin, proxy):
    _, answered = await ask(admin)
    said_before = len(proxy.output)
    await asyncio.sleep(0.6)  # as long as two tries to pull: nothing to await, since nothing may happen
    assert not answered.done()
    assert len(proxy.output) == said_before

    await admin.ensure_consumer(CONSUMER)

    await asyncio.wait_for(answered, 5)


@pytest.mark.broker
async def test_nothing_of_a_prompt_is_logged_or_kept(admin, proxy, tmp_path):
    await admin.ensure_consumer(CONSUMER)
    secret = f"my-secret-{secrets.token_hex(8)}"
    _, answered = await ask(admin, prompt=secret)
    message = await asyncio.wait_for(answered, 5)
    # One whose envelope is broken too: an error must not quote it.
    await admin.publish(
        subjects.ai_request("m"), secret.encode(), headers={"Hearth-Meta": json.dumps({"request": secret})}, msg_id=secret
    )
    assert await settled(admin)

    assert await proxy.stop() == 0

    assert secret.encode() not in message.body
    assert secret.encode() not in proxy.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.broker
async def test_an_unreadable_request_or_a_late_one_stops_nothing(admin, proxy):
    await admin.ensure_consumer(CONSUMER)
    await admin.publish(subjects.ai_request("m"), b"{}", msg_id=secrets.token_hex(8))
    _, late = await ask(admin, deadline=1.0)
    _, hostile = await ask(admin, tenant="x" * 300)
    _, answered = await ask(admin)

    await asyncio.wait_for(answered, 5)

    assert await settled(admin)
    assert not late.done()
    assert hostile.done()


@pytest.mark.broker
async def test_two_hundred_at_once_are_each_answered_once(admin, proxy):
    await admin.ensure_consumer(CONSUMER)
    asked = [await ask(admin) for _ in range(200)]
    for _, answered in asked:
        await asyncio.wait_for(answered, 10)
    assert await settled(admin)
    info = await admin.stream_info("AI_TOKENS")
    assert info.messages == 200


@pytest.mark.parametrize(("host", "error"), [("", NoModelServer), ("http://10.0.0.5:11434", NotOffered)], ids=["empty", "set"])
def test_what_is_refused_depends_on_the_setting(host, error):
    assert isinstance(answer.refusal(host), error)
    assert "HEARTH_OLLAMA_HOST" in str(answer.refusal(host))
