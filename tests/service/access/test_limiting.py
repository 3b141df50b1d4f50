"""Who calls too often is told so, and when to come again; nobody else is, and no call waits for the one that counts."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError

from service import app as application
from service import db
from service.access import limiting
from service.access.limiting import AWAY_SECONDS, Limits, Standing, Window, place_of
from service.app import create_app
from service.config import Settings
from service.telemetry.http import REGISTRY
from tests.service.access.people import bearer, person
from tests.serving import free_port
from tests.support import LOCAL_URL

Opened = Callable[..., Any]
FIELD = re.compile(r'"(\w+)";r=(\d+);t=(\d+)')


@pytest.fixture
def limited(rules: None, database: str, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens the service with these limits; `auth` is required unless it says otherwise."""

    @contextmanager
    def opened(**settings: str) -> Iterator[TestClient]:
        for name, value in {"auth": "required", **settings}.items():
            monkeypatch.setenv(f"EXPUNGE_{name.upper()}", value)
        db.reset()
        elsewhere = ("192.0.2.1", 1)
        with TestClient(create_app(), base_url=LOCAL_URL, raise_server_exceptions=False, client=elsewhere) as client:
            yield client

    return opened


def _key(*roles: Any) -> dict[str, str]:
    return bearer(person("default", *(roles or ("auditor",)))[2])


# ------------------------------------------------------------------------------------------------------------ the answers


@pytest.mark.one_database
def test_the_limit_of_reads_is_the_principals_and_every_answer_says_how_it_stands(limited: Opened) -> None:
    with limited(rate_limit_reads="3/minute") as client:
        ada, bob = _key(), _key()
        answers = [client.get("/models", headers=ada) for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert [a.headers["RateLimit-Policy"] for a in answers] == ['"reads";q=3;w=60'] * 5
        told = [FIELD.fullmatch(a.headers["RateLimit"]) for a in answers]
        assert [(t[1], int(t[2])) for t in told if t] == [("reads", 2), ("reads", 1), ("reads", 0), ("reads", 0), ("reads", 0)]
        refused = answers[3]
        assert refused.headers["content-type"] == "application/problem+json"
        assert (refused.json()["code"], refused.json()["retryable"]) == ("rate_limited", True)
        assert 1 <= int(refused.headers["Retry-After"]) <= 120
        assert ["Retry-After" in a.headers for a in answers[:3]] == [False] * 3
        assert client.get("/models", headers=bob).status_code == 200


@pytest.mark.one_database
def test_two_keys_of_one_principal_share_a_limit(limited: Opened) -> None:
    from service import tenancy
    from service.access import service
    from service.audit.leaves import LOCAL
    from service.edge import writing

    with limited(rate_limit_reads="2/minute") as client:
        who, _, first = person("default", "auditor")
        with tenancy.acting(None), writing() as session:
            owner = service.get_principal(session, who)
            _, second = service.create_key(session, principal=owner, name="k2", days=9, actor=LOCAL)
        assert [client.get("/models", headers=bearer(k)).status_code for k in (first, second, first)] == [200, 200, 429]


@pytest.mark.one_database
def test_writes_have_a_limit_of_their_own_and_are_refused_before_anything_is_done(limited: Opened) -> None:
    with limited(rate_limit_writes="1/minute", rate_limit_reads="9/minute") as client:
        admin = _key("admin")
        made = [client.post("/projects", json={"id": name}, headers=admin).status_code for name in ("one", "two")]
        assert made == [201, 429]
        listed = client.get("/projects", headers=admin)
        assert listed.status_code == 200
        assert "two" not in [project["id"] for project in listed.json()["data"]]


@pytest.mark.one_database
def test_several_limits_are_all_kept_and_all_told(limited: Opened) -> None:
    with limited(rate_limit_reads="9/minute;2/hour") as client:
        key = _key()
        answers = [client.get("/models", headers=key) for _ in range(3)]
        assert [a.status_code for a in answers] == [200, 200, 429]
        assert answers[0].headers["RateLimit-Policy"] == '"reads-60";q=9;w=60, "reads-3600";q=2;w=3600'
        assert answers[2].headers["RateLimit"].startswith('"reads-60";r=')
        assert '"reads-3600";r=0' in answers[2].headers["RateLimit"]


def test_retry_after_waits_for_the_limit_that_is_reached_not_for_the_others() -> None:
    standing = Standing("reads", (Window(9, 60, 4, 50), Window(2, 10, 0, 7)), False)
    assert standing.headers()["Retry-After"] == "7"
    assert Standing("reads", (Window(9, 60, 0, 0),), False).headers()["Retry-After"] == "1"  # never at once


@pytest.mark.one_database
def test_probes_are_never_limited(limited: Opened) -> None:
    with limited(rate_limit_reads="1/hour", rate_limit_denied="1/hour") as client:
        for path in ("/healthz", "/readyz"):
            answers = [client.get(path) for _ in range(4)]
            assert {a.status_code for a in answers} == {200}
            assert not any("RateLimit" in a.headers for a in answers)


@pytest.mark.one_database
def test_what_is_public_is_limited_by_address(limited: Opened) -> None:
    with limited(rate_limit_reads="2/hour") as client:
        assert [client.get("/openapi.json").status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.one_database
def test_the_local_user_has_no_limit_until_one_is_set(limited: Opened) -> None:
    with limited(auth="local") as client:
        answer = client.get("/models")
        assert (answer.status_code, "RateLimit" in answer.headers) == (200, False)
    with limited(auth="local", rate_limit_reads="1/hour") as client:
        assert [client.get("/models").status_code for _ in range(2)] == [200, 429]


def test_callers_with_keys_have_limits_unless_they_are_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, text in (("reads", "6000/minute"), ("writes", "600/minute"), ("denied", "60/minute")):
        assert Settings(auth="required").rate_limit(kind) == text  # type: ignore[arg-type]
        assert Settings(auth="local").rate_limit(kind) == ""  # type: ignore[arg-type]
        monkeypatch.setenv(f"EXPUNGE_RATE_LIMIT_{kind.upper()}", "")
        assert Settings(auth="required").rate_limit(kind) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["often", "0/minute", "6000", "5/fortnight"])
def test_a_limit_that_is_none_stops_the_process(text: str) -> None:
    with pytest.raises(ValidationError):
        Settings(rate_limit_reads=text)


# ------------------------------------------------------------------------------------------------------------ credentials


@pytest.mark.one_database
def test_keys_cannot_be_guessed_quickly_and_the_right_guess_is_not_seen_any_more(limited: Opened) -> None:
    with limited(rate_limit_denied="3/hour") as client:
        right = _key()
        guesses = [client.get("/models", headers=bearer(f"expk_{k:0>65}")) for k in range(5)]
        assert [a.status_code for a in guesses] == [401, 401, 401, 429, 429]
        assert guesses[0].headers["RateLimit"].startswith('"denied";r=2;t=')
        assert client.get("/models", headers=right).status_code == 429


@pytest.mark.one_database
def test_calls_without_credentials_count_as_well(limited: Opened) -> None:
    with limited(rate_limit_denied="2/hour") as client:
        assert [client.get("/models").status_code for _ in range(3)] == [401, 401, 429]


@pytest.mark.one_database
def test_who_was_good_lately_is_not_kept_out_by_guesses_from_the_same_address(
    limited: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.access import authenticate

    with limited(rate_limit_denied="1/hour") as client:
        known = _key()
        assert client.get("/models", headers=known).status_code == 200
        assert [client.get("/models").status_code for _ in range(2)] == [401, 429]
        monkeypatch.setattr(authenticate, "TRUST_SECONDS", 0.0)  # and is checked again all the same
        assert client.get("/models", headers=known).status_code == 200


def test_one_hosts_ipv6_addresses_are_one() -> None:
    assert place_of("2001:db8::1") == place_of("2001:db8::ffff:2") == "2001:db8::/64"
    assert place_of("2001:db8:0:1::1") != place_of("2001:db8::1")
    assert place_of("::ffff:192.0.2.1") == place_of("192.0.2.1") == "192.0.2.1"
    assert place_of(None) == place_of("testclient") == "nowhere"


# ------------------------------------------------------------------------------------------------------------------ Redis


def _count(limits: Limits, who: str, times: int) -> list[bool]:
    async def counted() -> list[bool]:
        try:
            standings = [await limits.count("reads", who) for _ in range(times)]
        finally:
            await limits.close()
        return [one is not None and one.within for one in standings]

    return asyncio.run(counted())


def _settings(url: str) -> Settings:
    return Settings(auth="required", broker_url=SecretStr(url), rate_limit_reads="3/hour")


def test_processes_that_share_a_redis_count_together(redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiting, "PATIENCE_SECONDS", 30.0)  # a busy host is not what is tested here
    who = uuid.uuid4().hex
    assert _count(Limits(_settings(redis_server)), who, 2) == [True, True]
    assert _count(Limits(_settings(redis_server)), who, 2) == [True, False]
    assert _count(Limits(_settings("memory://")), who, 2) == [True, True]  # this one counts alone


def _errors() -> float:
    return REGISTRY.get_sample_value("expunge_api_rate_limit_store_errors_total") or 0.0


def test_a_redis_that_is_away_refuses_nobody_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    before = _errors()
    with caplog.at_level(logging.WARNING, "expunge.access"):
        assert _count(Limits(_settings(f"redis://127.0.0.1:{free_port()}/0")), "x", 4) == [True, True, True, False]
    assert [r.message for r in caplog.records] == ["rate_limit.store_away"]
    assert _errors() == before + 1


def test_a_redis_that_does_not_answer_holds_up_one_call_and_no_other() -> None:
    """It accepts connections and says nothing: 50 calls take one wait of 0.25 s, where each waiting alone would take 12 s."""

    async def told() -> tuple[float, int]:
        server = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
        limits = Limits(_settings(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"))
        began = time.monotonic()
        for k in range(50):
            assert await limits.count("reads", f"{k}") is not None
        seconds = time.monotonic() - began
        assert limits._counts is not None
        limits._counts._clock = lambda: time.monotonic() + AWAY_SECONDS  # later it is asked again, by one call
        errors = _errors()
        await asyncio.gather(*(limits.count("reads", f"{k}") for k in range(20)))
        await limits.close()
        server.close()
        return seconds, int(_errors() - errors)

    seconds, asked = asyncio.run(told())
    assert limiting.PATIENCE_SECONDS <= seconds < 5.0
    assert asked == 1


def test_celerys_way_to_ask_for_certificates_is_understood() -> None:
    limits = Limits(_settings("rediss://host/0?ssl_cert_reqs=CERT_REQUIRED"))
    assert limits._counts is not None
    assert limits._counts._pool is not None
    assert limits._counts._pool.connection_kwargs["ssl_cert_reqs"] == "required"


# -------------------------------------------------------------------------------------------------------------- described


def test_the_document_says_429_of_every_operation_but_the_probes() -> None:
    document = application.create_app().openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answer = operation["responses"].get("429")
            assert (answer is None) == (path in ("/healthz", "/readyz"))
            assert answer is None or ("`rate_limited`" in answer["description"] and "Retry-After" in answer["headers"])
    asked = document["paths"]["/unlearn-requests"]["post"]["responses"]["429"]
    assert "`quota_exceeded`" in asked["description"]


@pytest.mark.one_database
def test_refusals_are_counted_by_limit(limited: Opened) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("expunge_api_rate_limited_total", {"limit": "reads"}) or 0.0

    with limited(rate_limit_reads="1/hour") as client:
        key, before = _key(), counted()
        assert [client.get("/models", headers=key).status_code for _ in range(3)] == [200, 429, 429]
        assert counted() == before + 2
