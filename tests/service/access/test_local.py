"""Without access control: what was before, and not one step off the loopback."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.app import create_app
from service.audit.leaves import LOCAL
from service.config import Settings
from service.tenancy import HOME
from tests.support import LOCAL_URL, code_of, one_database

Headers = dict[str, str]


def test_the_local_caller_needs_no_key_and_a_key_changes_nothing(client: TestClient) -> None:
    assert client.get("/models").status_code == 200
    assert client.get("/models", headers={"Authorization": "Bearer nonsense"}).status_code == 200
    made = client.post("/projects", json={"id": "b"})
    assert (made.status_code, made.json()["created_by"]) == (201, str(LOCAL))


@one_database
def test_an_app_that_somebody_bound_to_another_address_serves_nobody(database: str) -> None:
    """`uvicorn --host 0.0.0.0` goes around the command that refuses it."""
    for address, status in (("192.0.2.1", 401), ("127.0.0.1", 200), ("[::1]", 200)):
        reached = TestClient(create_app(Settings()), base_url=f"http://{address}")
        assert reached.get("/healthz").status_code == status, address
    assert code_of(TestClient(create_app(Settings()), base_url="http://192.0.2.1").get("/models")) == "unauthenticated"
    contained = TestClient(create_app(Settings(bind_in_container=True)), base_url="http://192.0.2.1")
    assert contained.get("/healthz", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    assert code_of(contained.get("/healthz")) == "foreign_host"


EVERYWHERE = ("/models", "/healthz", "/docs", "/openapi.json", "/nowhere")


@one_database
@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1:9", "127.8.0.1", "[::1]", "[::1]:8000"])
def test_loopback_s_names_and_addresses_are_answered_to_with_any_port(client: TestClient, host: str) -> None:
    assert [client.get(path, headers={"Host": host}).status_code for path in EVERYWHERE] == [200, 200, 200, 200, 404]


@one_database
@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "192.0.2.1:8000", "0.0.0.0:8000", "localhost.evil.example", "evil.example@localhost",
     "127.0.0.1.evil.example", "localhost:8000:80", "[::1", "[2001:db8::1]", "", " "],
)  # fmt: skip
def test_a_page_that_made_its_own_name_resolve_to_loopback_is_nobody(client: TestClient, host: str) -> None:
    """As its browser sees it the page is of one origin with the API, so nothing but its name gives it away."""
    said = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert {code_of(client.get(path, headers=said)) for path in EVERYWHERE} == {"foreign_host"}
    assert code_of(client.post("/projects", json={"id": "b"}, headers=said)) == "foreign_host"
    assert [one["id"] for one in client.get("/projects").json()["data"]] == [HOME]


@one_database
def test_a_call_must_name_one_host(client: TestClient) -> None:
    both = [("Host", "127.0.0.1"), ("Host", "evil.example")]
    assert code_of(client.get("/models", headers=both)) == "foreign_host"


@one_database
@pytest.mark.parametrize(
    "said",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:3000"}, {"Origin": "http://[::1"},
     {"Origin": "file://127.0.0.1"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
     {"Origin": LOCAL_URL, "Sec-Fetch-Site": "cross-site"}],
)  # fmt: skip
def test_a_page_of_another_origin_makes_its_readers_browser_do_nothing(client: TestClient, said: Headers) -> None:
    assert code_of(client.post("/projects", json={"id": "b"}, headers=said)) == "foreign_origin"
    assert code_of(client.get("/projects", headers=said)) == "foreign_origin"
    assert [one["id"] for one in client.get("/projects").json()["data"]] == [HOME]


@one_database
def test_pages_of_the_service_and_followed_links_are_answered(client: TestClient) -> None:
    own = {"Origin": LOCAL_URL, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/projects", json={"id": "b"}, headers=own).status_code == 201
    typed = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    link = {**typed, "Sec-Fetch-Site": "cross-site"}
    for said in (own, typed, link):
        assert client.get("/docs", headers=said).status_code == 200
    assert code_of(client.get("/docs", headers={**link, "Sec-Fetch-Dest": "iframe"})) == "foreign_origin"
    assert code_of(client.post("/projects", json={"id": "c"}, headers=link)) == "foreign_origin"


@one_database
def test_a_name_that_was_set_is_the_services_own(database: str) -> None:
    """Behind a proxy that passes its name on, and behind one that does not."""
    proxied = TestClient(create_app(Settings(local_hosts=("expunge.lan",))), base_url="http://Expunge.LAN:8443")
    own = {"Origin": "https://expunge.lan:8443", "Sec-Fetch-Site": "same-origin"}
    for said in ({}, own, {**own, "Host": "127.0.0.1:8000"}):
        assert proxied.get("/healthz", headers=said).status_code == 200
    assert code_of(proxied.get("/healthz", headers={"Host": "evil.example"})) == "foreign_host"
    assert code_of(proxied.get("/healthz", headers={"Origin": "https://evil.example"})) == "foreign_origin"


@one_database
@pytest.mark.parametrize("name", ["", "*", "http://expunge.lan", "expunge.lan:80", "Expunge.lan"])
def test_what_is_no_plain_name_cannot_be_set(name: str) -> None:
    with pytest.raises(ValidationError):
        Settings(local_hosts=(name,))


def test_with_access_control_nobodys_name_or_origin_matters(guarded: TestClient) -> None:
    """A browser shows no key of its own accord."""
    said = {"Host": "expunge.example", "Origin": "https://another.example", "Sec-Fetch-Site": "cross-site"}
    assert guarded.get("/healthz", headers=said).status_code == 200
