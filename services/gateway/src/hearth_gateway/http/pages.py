"""The built-in pages: whole in themselves, no script, nothing fetched from elsewhere."""

from collections.abc import Mapping
from typing import Any, Final

from jinja2 import DictLoader, Environment

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}

_BASE: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width"><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h2{margin-top:2rem;border-bottom:1px solid #ddd}code,pre{font:13px ui-monospace,monospace;background:#f4f4f4;padding:.1em .3em}
details{border:1px solid #ddd;border-radius:4px;margin:.4rem 0;padding:.3rem .7rem}summary{cursor:pointer}
b{display:inline-block;min-width:4.5rem}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}
.bad{color:#a00}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code,pre{background:#2a2a2a}a{color:#8bf}
details,h2{border-color:#444}}</style></head><body>{% block body %}{% endblock %}</body></html>"""

_FRONT: Final = """{% extends "base" %}{% block body %}<h1>Hearth</h1>
<p>Functions as a service on machines you own. This is the gateway of the platform <code>{{ platform }}</code>.</p>
{% if problems %}<h2 class="bad">Not ready</h2><ul>{% for name, fix in problems.items() %}<li>{{ name }}: {{ fix }}</li>{% endfor %}</ul>
{% else %}<p>It is ready.</p>{% endif %}
<ul><li><a href="/docs">the HTTP interface</a> (<a href="/openapi.json">as OpenAPI</a>)</li>
<li><a href="/readyz">readiness</a>, <a href="/healthz">health</a>, <a href="/metrics">metrics</a></li>
<li><code>GET /v1/system</code>, with a key: the fleet</li></ul>{% endblock %}"""

_DOCS: Final = """{% extends "base" %}{% block body %}<h1>{{ document.info.title }} {{ document.info.version }}</h1>
<p>{{ document.info.description }} Send the key as <code>x-api-key</code> or <code>Authorization: Bearer</code>. Errors are
<code>application/problem+json</code> with a stable <code>code</code> and a <code>fix</code>. The same as
<a href="/openapi.json">OpenAPI</a>.</p>
{% for tag, operations in tags.items() %}<h2>{{ tag }}</h2>{% for method, path, op in operations %}
<details><summary><b>{{ method }}</b> <code>{{ path }}</code> {{ op.summary }}</summary>
{% if op.parameters %}<table>{% for p in op.parameters %}<tr><td><code>{{ p.name }}</code></td><td>{{ p["in"] }}</td>
<td>{{ p.description }}</td></tr>{% endfor %}</table>{% endif %}
{% if op.requestBody %}{% for kind, content in op.requestBody.content.items() %}<p><code>{{ kind }}</code></p>
<pre>{{ content.schema | tojson(indent=2) }}</pre>{% endfor %}{% endif %}
<table>{% for status, answer in op.responses.items() %}<tr><td>{{ status }}</td><td>{{ answer.description }}</td></tr>{% endfor %}</table>
</details>{% endfor %}{% endfor %}
<h2>Codes</h2><table>{% for code, status, title, fix in codes %}<tr id="{{ code }}"><td><code>{{ code }}</code></td><td>{{ status }}</td>
<td>{{ title }} {{ fix }}</td></tr>{% endfor %}</table>{% endblock %}"""

_pages = Environment(loader=DictLoader({"base": _BASE, "front": _FRONT, "docs": _DOCS}), autoescape=True)


def front(platform: str, problems: Mapping[str, str]) -> str:
    return _pages.get_template("front").render(title="Hearth", platform=platform, problems=problems)


def docs(document: Mapping[str, Any]) -> str:
    tags: dict[str, list[tuple[str, str, Any]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tags.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    return _pages.get_template("docs").render(title="Hearth", document=document, tags=tags, codes=document["x-codes"])
