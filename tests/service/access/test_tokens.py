"""Tokens of an identity provider: what is believed, and what is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey
from pydantic import ValidationError

from service.access.errors import BadCredentials
from service.access.tokens import Tokens
from service.audit.leaves import LOCAL
from service.config import Settings
from service.errors import Unavailable
from tests.service.access.people import bearer, project
from tests.service.audit.people import entries, said
from tests.support import code_of

ISSUER, AUDIENCE, JWKS = "https://id.example/", "expunge", "https://id.example/jwks"
KEY = ECKey.generate_key("P-256", {"kid": "one"})
OTHER = ECKey.generate_key("P-256", {"kid": "two"})


def settings(**more: Any) -> Settings:
    return Settings(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks_url=JWKS, **more)


def published(*keys: Any) -> Callable[[str], Any]:
    return lambda _url: KeySet(list(keys)).as_dict(private=False)


def token(key: Any = KEY, *, alg: str = "ES256", kid: str | None = "one", without: str = "", **more: Any) -> str:
    at = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada@example.org", "exp": at + 300, "project": "default"}
    claims |= {"roles": ["requester", "auditor", "of another service"], **more}
    claims.pop(without, None)
    header = {"alg": alg} | ({"kid": kid} if kid else {})
    return jwt.encode(header, claims, key, algorithms=[alg])


def test_a_good_token_gives_subject_project_and_the_roles_that_are_ours() -> None:
    claims = Tokens(settings(), load=published(KEY)).verify(token())
    assert (claims.subject, claims.project, claims.roles) == ("ada@example.org", "default", ("auditor", "requester"))
    mapped = settings(jwt_role_map={"ml-ops": "operator"}, jwt_roles_claim="realm_access.roles", jwt_project_claim="")
    found = Tokens(mapped, load=published(KEY)).verify(token(realm_access={"roles": ["ml-ops", "admin"]}, project=None))
    assert (found.project, found.roles) == ("default", ("operator",))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: token(iss="https://else.example/"),
        lambda: token(aud="another service"),
        lambda: token(exp=int(time.time()) - 31),
        lambda: token(nbf=int(time.time()) + 60),
        lambda: token(without="exp"),
        lambda: token(without="aud"),
        lambda: token(without="sub"),
        lambda: token(without="project"),
        lambda: token(without="roles"),
        lambda: token(roles="admin"),
        lambda: token(sub=7),
        lambda: token(sub="x" * 256),
        lambda: token(OTHER),
        lambda: token(OTHER, kid="two"),
        lambda: token(KEY, alg="ES256")[:-4] + "AAAA",
        lambda: token(OctKey.import_key("secret-secret-secret-secret-secret"), alg="HS256"),
        lambda: token(RSAKey.generate_key(2048), alg="RS512"),
        lambda: "eyJhbGciOiJub25lIn0." + token().split(".")[1] + ".",
        lambda: "a.b.c",
        lambda: "nonsense",
    ],
)
def test_a_token_that_is_wrong_anywhere_is_refused(bad: Callable[[], str]) -> None:
    with pytest.raises(BadCredentials):
        Tokens(settings(), load=published(KEY)).verify(bad())


def test_clocks_may_differ_by_the_leeway() -> None:
    at = int(time.time())
    assert Tokens(settings(), load=published(KEY)).verify(token(exp=at - 10, nbf=at + 10)).subject


def test_a_new_key_is_fetched_when_it_is_first_seen_but_not_at_every_guess() -> None:
    ticks, sets, fetched = [0.0], [[KEY]], []

    def load(_url: str) -> Any:
        fetched.append(ticks[0])
        return KeySet(list(sets[-1])).as_dict(private=False)

    tokens = Tokens(settings(), load=load, clock=lambda: ticks[0])
    tokens.verify(token())
    for _ in range(5):
        with pytest.raises(BadCredentials):
            tokens.verify(token(OTHER, kid="two"))
    assert fetched == [0.0]
    sets.append([KEY, OTHER])
    ticks[0] = 31.0
    assert tokens.verify(token(OTHER, kid="two")).subject
    ticks[0] = 631.5
    assert tokens.verify(token()).subject
    assert fetched == [0.0, 31.0, 631.5]  # the last one: what was fetched is stale after ten minutes


def test_a_provider_that_is_away_is_not_the_caller_s_fault_and_old_keys_serve_on_for_a_day() -> None:
    ticks, up = [0.0], [False]

    def load(_url: str) -> Any:
        if not up[0]:
            raise httpx2.ConnectError("away")
        return KeySet([KEY]).as_dict(private=False)

    tokens = Tokens(settings(), load=load, clock=lambda: ticks[0])
    with pytest.raises(Unavailable):
        tokens.verify(token())
    up[0], ticks[0] = True, 31.0
    assert tokens.verify(token()).subject
    up[0], ticks[0] = False, 80_000.0
    assert tokens.verify(token()).subject
    ticks[0] = 31.0 + 86_401.0
    with pytest.raises(Unavailable):
        tokens.verify(token())


@pytest.mark.parametrize(
    "wrong",
    [
        {"jwt_issuer": ISSUER},
        {"jwt_jwks_url": JWKS, "jwt_audience": "a"},
        {"jwt_algorithms": ("HS256",)},
        {"jwt_algorithms": ("none",)},
    ],
)
def test_half_a_configuration_and_shared_secrets_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_the_key_set_comes_over_https_or_from_this_host() -> None:
    with pytest.raises(ValidationError):
        settings().__class__(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks_url="http://id.example/jwks")
    assert Settings(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks_url="http://127.0.0.1:9/jwks").jwt_jwks_url


def test_a_person_with_a_token_is_known_by_an_id_and_can_be_switched_off(guarded: TestClient) -> None:
    guarded.app.state.authenticator._tokens = Tokens(settings(), load=published(KEY))  # type: ignore[attr-defined]
    assert guarded.get("/models", headers=bearer(token())).status_code == 200
    assert guarded.get("/models", headers=bearer(token(nbf=0))).status_code == 200  # another token of the same person
    (made,) = entries("principal.created")
    who = said(made)["principalId"]
    assert said(made)["token"] is True
    assert made.actor == f"user:{who}"
    assert b"ada@" not in (made.leaf or b"")
    assert code_of(guarded.post("/models", json={}, headers=bearer(token()))) == "forbidden"
    assert code_of(guarded.get("/models", headers=bearer(token(project="nowhere")))) == "unauthenticated"
    assert guarded.get("/models", headers=bearer(token(project=project("b")))).status_code == 200
    from service.access import service
    from service.db import transaction

    with transaction() as session:
        service.deactivate(session, who, actor=LOCAL)
    guarded.app.state.authenticator.forget()  # type: ignore[attr-defined]
    assert guarded.get("/models", headers=bearer(token())).status_code == 401


def test_a_service_without_a_provider_takes_no_token(guarded: TestClient) -> None:
    assert guarded.get("/models", headers=bearer(token())).status_code == 401
