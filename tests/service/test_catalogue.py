"""What may be asked: the packaged catalogue and policy, and what happens when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import catalogue
from service.catalogue import Catalogue, PolicyInvalid
from service.config import Settings
from service.errors import UnknownMethod
from service.requests.service import sha256_of
from tests.support import ask, code_of, one_database, register
from worker import contract


@pytest.fixture
def packaged() -> Catalogue:
    return Catalogue.model_validate_json(catalogue.CATALOGUE_FILE.read_bytes())


def test_every_method_of_the_packaged_catalogue_takes_its_own_defaults(packaged: Catalogue) -> None:
    for name in packaged.methods:
        effective = catalogue.effective_params(name, {})
        assert catalogue.effective_params(name, effective) == effective


def test_every_family_of_the_packaged_catalogue_has_a_default_method(packaged: Catalogue) -> None:
    for family in packaged.families:
        assert catalogue.choose_method(family, None) in packaged.methods


def test_the_packaged_policy_is_one_that_the_worker_takes() -> None:
    """And its digest in the ledger is the one in the worker's reports, so it must spell out every default."""
    policy = catalogue.current_policy(Settings())
    theirs = contract.Policy.model_validate(policy)
    assert sha256_of(policy) == contract.document_digest(theirs)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"name": "x", "checks": []}', '{"name": 1, "checks": [{"verifier": "integrity"}]}',
                '{"name": "x", "checks": [{"verifier": "no_such_check"}]}', '{"name": "x", "checks": [{}]}'],
)  # fmt: skip
def test_a_policy_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    """Fail closed: a request must not be taken on a promise that cannot be kept."""
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(PolicyInvalid):
        catalogue.current_policy(Settings(policy_file=path))
    with pytest.raises(PolicyInvalid):
        catalogue.current_policy(Settings(policy_file=tmp_path / "missing.json"))


@one_database
def test_a_request_under_a_broken_policy_is_not_taken(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    (tmp_path / "policy.json").write_text("{}")
    response = ask(client, model, 1)
    assert (response.status_code, code_of(response)) == (500, "internal")
    assert client.get("/unlearn-requests").json()["data"] == []


@one_database
def test_the_catalogue_is_served(client: TestClient) -> None:
    body = client.get("/catalogue").json()
    assert body["methods"]["sfron"]["params"]["properties"]["iterations"]["maximum"] == 1000


def test_the_default_method_is_sfron_where_the_family_has_it(rules: None) -> None:
    assert catalogue.choose_method("ddpm", None) == "sfron"  # and not the first by name
    with pytest.raises(UnknownMethod):
        catalogue.choose_method("stone", None)


def test_defaults_are_not_shared_between_requests(rules: None) -> None:
    first = catalogue.effective_params("sfron", {})
    first["iterations"] = 1
    assert catalogue.effective_params("sfron", {})["iterations"] == 50
    assert json.loads(json.dumps(first)) == first
