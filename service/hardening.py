"""What browsers are told of every answer, so that none is more to them than it is meant to be."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import Scope

NO_PAGE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of what is no page: were it shown as one, it could load and run nothing."""
DOCS_PAGES = frozenset({"/docs", "/docs/oauth2-redirect"})
DESCRIPTION = ("/docs", "/openapi.json", "/static-offline-docs/")
"""The same for everybody, so it may be kept."""
INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HSTS = "max-age=31536000"


def docs_policy(page: bytes) -> str:
    """Content-Security-Policy of a page of /docs: its own inline scripts by their digests, and files of this service."""
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in INLINE_SCRIPT.findall(page))
    scripts = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def harden(headers: MutableHeaders, scope: Scope, status: int, policy: str = NO_PAGE) -> None:
    """In place: what browsers are told of an answer. What a route says itself stands."""
    for name, value in ALWAYS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", policy)
    if status != 304 and not scope["path"].startswith(DESCRIPTION):  # a 304 would change what was kept
        headers.setdefault("Cache-Control", "no-store")
    if scope.get("scheme") == "https":  # uvicorn believes X-Forwarded-Proto of FORWARDED_ALLOW_IPS alone
        headers.setdefault("Strict-Transport-Security", HSTS)
