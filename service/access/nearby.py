"""Who is here: without credentials whoever reaches the port is the operator, and a browser on this host does so for any page.

A page whose name is made to resolve to 127.0.0.1 while it is open (DNS rebinding) is of one origin with the API as its browser
sees it, but its calls name it in `Host`. A page of another origin cannot read an answer; what it asks for would be done all the
same, but its browser says of such calls where they come from (`Origin`, Fetch Metadata). Programs say neither.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from service.errors import ServiceError

AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/?#@\[\]]+))(?::[0-9]*)?", re.IGNORECASE)
"""RFC 9112 §3.2, less what no browser sends."""
SAFE = frozenset({"GET", "HEAD"})


class ForeignHost(ServiceError):
    """Without access control the API answers to loopback's names and addresses, and those in `EXPUNGE_LOCAL_HOSTS`, alone."""

    status, code, title = 403, "foreign_host", "The API is not called by this name"


class ForeignOrigin(ServiceError):
    """Without access control the API answers no calls that a page of another origin makes its reader's browser send."""

    status, code, title = 403, "foreign_origin", "The call was made by a page of another origin"


def require_nearby(method: str, headers: Headers, names: Collection[str]) -> None:
    """Raises: ForeignHost, ForeignOrigin.

    Args:
        names: that the API may be called by besides loopback's, in lower case.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not is_near(hosts[0], names):
        raise ForeignHost("call it as localhost or by a loopback address, or name its host in EXPUNGE_LOCAL_HOSTS")
    if not all(_is_own(origin, hosts[0], names) for origin in headers.getlist("origin")):
        raise ForeignOrigin
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_link(method, headers):
        raise ForeignOrigin


def is_near(authority: str, names: Collection[str]) -> bool:
    """Whether a name or an address, with or without a port, is loopback's or one of these."""
    found = AUTHORITY.fullmatch(authority)
    if found is None:
        return False
    name = (found[1] or found[2]).lower()
    return name == "localhost" or name in names or _is_loopback(name)


@lru_cache(maxsize=64)
def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_own(origin: str, host: str, names: Collection[str]) -> bool:
    """Behind a proxy that calls the API by another name than its own, the names that were set are its own as well."""
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and (parts.netloc.lower() == host.lower() or parts.hostname in names)
    except ValueError:
        return False


def _is_link(method: str, headers: Headers) -> bool:
    """Somebody followed a link to here: the answer is theirs to see, and no page's to read."""
    return method in SAFE and (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
