"""What a request is answered with."""

import json
from typing import Final

from hearth_ai_proxy.errors import AiProxyError, NoModelServer, NotOffered
from hearth_contracts.ai import AiRequest, AiTokens

CONTENT_TYPE: Final = "application/problem+json"


def refusal(ollama_host: str) -> AiProxyError:
    """Why no request can be served with this setting."""
    error = NotOffered if ollama_host else NoModelServer
    return error(error.__doc__)


def expired(request: AiRequest, now: float) -> bool:
    """Whether nobody waits for the answer any more."""
    return request.deadline is not None and request.deadline < now


def problem(request: AiRequest, error: AiProxyError) -> tuple[AiTokens, bytes]:
    """The first and last piece of the answer. It repeats nothing of what was asked."""
    body = {"type": "about:blank", "title": error.title, "status": error.status, "code": error.code, "detail": str(error)}
    tokens = AiTokens(
        request=request.request, number=0, last=True, status=error.status, content_type=CONTENT_TYPE, code=error.code
    )
    return tokens, json.dumps(body).encode()
