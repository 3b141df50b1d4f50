"""One POST to an address that a client named, such that it reaches no place inside our own network.

The name is resolved once, every address that it has must be public, and the connection goes to an address that was looked at:
a name that says something else a moment later gains nothing. After connecting the peer is looked at again. No proxy of the
environment is asked, no redirect is followed, and of the answer only its status is read.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpcore2
import httpx2

TIMEOUT_SECONDS = 15.0
"""For everything after the name was resolved, not for each step of it."""
Resolve = Callable[[str, int], list[str]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_EMBEDDING = tuple(ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10"))
"""Prefixes that lead to an IPv4 address inside of them, or to a site."""


class BadAddress(Exception):
    """Nothing may be sent to this URL. The text says why, and names no address that was looked up."""


class SendFailed(Exception):
    """No answer came. `code`: connection, timeout, or protocol."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def parse(url: str, *, loopback: bool) -> httpx2.URL:
    """The URL, if something may be sent to what it says; names are not resolved here.

    Args:
        loopback: this host may be sent to, and without TLS.

    Raises:
        BadAddress.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError, UnicodeError) as error:
        raise BadAddress("it is no URL") from error
    if parsed.scheme != "https" and not (loopback and parsed.scheme == "http"):
        raise BadAddress("expected an https:// URL")
    if not parsed.host:
        raise BadAddress("it names no host")
    if parsed.userinfo or parsed.fragment:
        raise BadAddress("expected no credentials and no fragment in the URL: messages are signed")
    try:
        literal = ipaddress.ip_address(parsed.host)
    except ValueError:
        return parsed
    if not permitted(literal, loopback=loopback):
        raise BadAddress("the address is not a public one")
    return parsed


def permitted(address: Address, *, loopback: bool) -> bool:
    """May something be sent there? Private, link-local (cloud metadata), multicast and reserved addresses never are."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return permitted(address.ipv4_mapped, loopback=loopback)
        if address.scope_id is not None or any(address in network for network in _EMBEDDING):
            return False
    if address.is_loopback:
        return loopback
    return address.is_global and not address.is_multicast


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name. Raises: OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass
class _Stream(httpcore2.NetworkStream):
    """A stream whose every step has what is left of the one deadline: a peer that drips bytes does not hold us for ever."""

    inner: httpcore2.NetworkStream
    deadline: float

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, _left(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.inner.write(buffer, _left(self.deadline))

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        inner = self.inner.start_tls(ssl_context, server_hostname, _left(self.deadline))
        return _Stream(inner, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


class _Guarded(httpcore2.NetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, *, plain: bool, loopback: bool, resolver: Resolve, timeout: float) -> None:
        self._plain, self._loopback, self._resolve, self._timeout = plain, loopback, resolver, timeout
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("the name has no address") from error
        for address in addresses:
            self._check(address)
        deadline = time.monotonic() + self._timeout
        refused: Exception = httpcore2.ConnectError("the name has no address")
        for address in addresses:
            try:
                stream = self._inner.connect_tcp(address, port, _left(deadline), local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                refused = error
                continue
            try:
                self._check(str(stream.get_extra_info("server_addr")[0]))
            except BadAddress:
                stream.close()
                raise
            return _Stream(stream, deadline)
        raise refused

    def _check(self, text: str) -> None:
        address = ipaddress.ip_address(text)
        if not permitted(address, loopback=self._loopback):
            raise BadAddress("the name leads to an address that is not a public one")
        if self._plain and not _unmapped(address).is_loopback:
            raise BadAddress("expected TLS to every host but this one")


def post(
    url: str,
    headers: dict[str, str],
    body: bytes,
    *,
    loopback: bool = False,
    resolver: Resolve | None = None,
    timeout: float = TIMEOUT_SECONDS,
    tls: ssl.SSLContext | None = None,
) -> int:
    """Send it; returns the answer's status, whatever it is.

    Args:
        timeout: seconds, for all of it.
        tls: whose certificates are believed; None: those of the public authorities.

    Raises:
        BadAddress, SendFailed.
    """
    parsed = parse(url, loopback=loopback)
    plain = parsed.scheme == "http"
    backend = _Guarded(plain=plain, loopback=loopback, resolver=resolver or resolve, timeout=timeout)
    target = httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
    sent = [(b"host", parsed.netloc), (b"content-length", str(len(body)).encode())]
    sent += [(name.encode(), value.encode()) for name, value in headers.items()]
    context = None if plain else tls or _authorities()
    try:
        with (
            httpcore2.ConnectionPool(ssl_context=context, network_backend=backend) as pool,
            pool.stream("POST", target, headers=sent, content=body) as answer,
        ):
            return int(answer.status)
    except httpcore2.TimeoutException as error:
        raise SendFailed("timeout") from error
    except httpcore2.ProtocolError as error:
        raise SendFailed("protocol") from error
    except (httpcore2.NetworkError, OSError) as error:
        raise SendFailed("connection") from error


@lru_cache(maxsize=1)
def _authorities() -> ssl.SSLContext:
    """Of the public, or of the operator, who names theirs in SSL_CERT_FILE. Read once: it is a quarter of a megabyte."""
    return httpx2.create_ssl_context()


def _unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the time is up")
    return left
