"""Nothing is sent to a place inside our own network, whatever a client's URL says and a name resolves to."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from service.webhooks import guard
from service.webhooks.guard import BadAddress, SendFailed
from tests.service.webhooks.conftest import Receiver

INSIDE = [
    "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::",
]  # fmt: skip


def post(url: str, *, leads_to: list[str] | None = None, **more: Any) -> int:
    resolver = None if leads_to is None else lambda _host, _port: leads_to
    return guard.post(url, {"webhook-id": "msg_1"}, b"{}", resolver=resolver, timeout=2.0, **more)


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_leads_inside_is_refused(address: str) -> None:
    with pytest.raises(BadAddress):
        post("https://hooks.example.org/x", leads_to=[address])


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_refused_as_it_is_written(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(BadAddress):
        guard.parse(f"https://{host}/x", loopback=False)


def test_one_address_inside_spoils_a_name_with_others_outside() -> None:
    with pytest.raises(BadAddress):
        post("https://hooks.example.org/x", leads_to=["93.184.215.14", "10.0.0.1"])


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"])
def test_other_spellings_of_this_host_are_refused_by_what_they_resolve_to(host: str) -> None:
    """The system's own resolver reads decimal, hexadecimal and short addresses."""
    assert set(guard.resolve(host, 443)) <= {"127.0.0.1", "::1"}
    with pytest.raises(BadAddress):
        post(f"https://{host}/x")


@pytest.mark.parametrize(
    "url",
    ["http://example.org/x", "ftp://example.org/", "https://user:pw@example.org/", "https://example.org/#x", "https:///x", "x"],
)
def test_urls_that_nothing_is_sent_to(url: str) -> None:
    with pytest.raises(BadAddress):
        guard.parse(url, loopback=False)


def test_this_host_is_sent_to_where_the_operator_allows_it(receiver: Receiver) -> None:
    assert post(f"http://127.0.0.1:{receiver.port}/hook?a=b", loopback=True) == 204
    [(path, headers, body)] = receiver.received
    assert (path, headers["webhook-id"], headers["host"], body) == ("/hook?a=b", "msg_1", f"127.0.0.1:{receiver.port}", b"{}")


def test_without_tls_nothing_goes_to_any_other_host() -> None:
    """Also where this host is allowed: a name that leads elsewhere must not take a message there in the clear."""
    with pytest.raises(BadAddress):
        post("http://hooks.example.org/x", leads_to=["93.184.215.14"], loopback=True)


def test_the_connection_goes_to_the_address_that_was_looked_at(receiver: Receiver) -> None:
    """The name is resolved once; what it would say a moment later is never asked."""
    asked: list[str] = []

    def resolver(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    url = f"http://rebinding.example.org:{receiver.port}/"
    assert guard.post(url, {}, b"{}", loopback=True, resolver=resolver) == 204
    assert asked == ["rebinding.example.org"]


def test_the_peer_is_looked_at_again_after_connecting(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route or a kernel rule may lead a public address to somewhere else."""
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda _a, *more, **kw: real(("127.0.0.1", receiver.port), *more, **kw))
    with pytest.raises(BadAddress):
        post("https://hooks.example.org/x", leads_to=["93.184.215.14"])
    assert receiver.received == []


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.status, receiver.headers = 302, {"location": f"http://127.0.0.1:{receiver.port}/latest/meta-data/"}
    assert post(f"http://127.0.0.1:{receiver.port}/hook", loopback=True) == 302
    assert [path for path, _, _ in receiver.received] == ["/hook"]


def test_no_proxy_of_the_environment_is_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(f"http://127.0.0.1:{receiver.port}/hook", loopback=True) == 204


def test_nobody_there(receiver: Receiver) -> None:
    receiver.server.server_close()
    with pytest.raises(SendFailed, match="connection"):
        post(f"http://127.0.0.1:{receiver.port}/", loopback=True)


def test_a_peer_that_drips_its_answer_does_not_hold_us() -> None:
    """Each byte comes within a read's timeout; the deadline is for all of them."""
    listening = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        peer, _ = listening.accept()
        with peer:
            while not stop.wait(0.1):
                try:
                    peer.sendall(b"H")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(SendFailed):
            guard.post(f"http://127.0.0.1:{listening.getsockname()[1]}/", {}, b"{}", loopback=True, timeout=1.0)
        assert time.monotonic() - began < 10.0
    finally:
        stop.set()
        thread.join()
        listening.close()
