"""What the ai-proxy tells those whose request it cannot serve.

AiProxyError
├── NoModelServer   none is configured
└── NotOffered      one is configured, and this release does not speak to it yet
"""

from typing import ClassVar


class AiProxyError(Exception):
    """A request to a model cannot be served."""

    code: ClassVar[str] = "E_AI_PROXY"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The request to a model cannot be served"


class NoModelServer(AiProxyError):
    """No model server is configured: set HEARTH_OLLAMA_HOST, such as http://127.0.0.1:11434, and start the ai-proxy again."""

    code = "E_NO_MODEL_SERVER"
    status = 503
    title = "No model server is configured"


class NotOffered(AiProxyError):
    """HEARTH_OLLAMA_HOST is set, but this release does not forward to a model server: leave it empty, or install a later one."""

    code = "E_NOT_AVAILABLE"
    status = 501
    title = "Models are not offered here"
