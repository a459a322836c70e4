"""Every metric of the ai-proxy."""

from typing import Final

from prometheus_client import Counter

REQUESTS: Final = Counter("hearth_ai_requests_total", "Requests to a model, by how they ended.", ["outcome"])
