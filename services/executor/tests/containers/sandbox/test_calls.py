"""What a function sees and what its caller gets, over both links, in real containers."""

import json

import pytest

pytestmark = pytest.mark.docker


async def test_a_call_answers_with_the_handlers_result(load_function, mode):
    function = await load_function("def handle(event, context):\n    return {'hello': event['name']}", mode=mode)
    finished = await function.call(b'{"name": "ada"}')
    assert finished.reason is None
    assert json.loads(finished.result) == {"hello": "ada"}
    assert finished.content_type == "application/json"
