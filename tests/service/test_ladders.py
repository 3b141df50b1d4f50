"""The packaged ladders fit the packaged catalogue, and a request that walks one says so beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import catalogue, ladders
from service.errors import UnknownMethod
from service.policies import service as policies
from service.requests.rungs import AUTO
from service.values import sha256_of
from tests.support import ask, code_of, one_database, register
from worker import contract

PACKAGED = catalogue.get_catalogue()
WALKS = [(family, unit) for family, units in PACKAGED.ladders.items() for unit in units]


def test_whatever_can_be_verified_has_a_ladder() -> None:
    verifiable = {
        (name, unit)
        for name, family in PACKAGED.families.items()
        for kind, units in policies.DEFAULTS
        for unit in units
        if kind == family.kind
    }
    assert set(WALKS) == verifiable
    assert AUTO not in PACKAGED.methods


@pytest.mark.parametrize(("family", "unit"), WALKS)
def test_a_packaged_ladder_names_recipes_that_the_family_has_cheapest_first(family: str, unit: catalogue.Unit) -> None:
    _, params = ladders.choose(family, AUTO, {}, unit=unit)  # refuses unknown methods' presets and parameters
    ladder = params["ladder"]
    named = [(r.method, r.preset) for r in PACKAGED.ladders[family][unit]]
    assert [(r["method"], r["params"]["preset"]) for r in ladder] == named
    assert all(r["method"] in PACKAGED.methods_for(family) for r in ladder)
    assert len(set(named)) == len(named) <= ladders.MOST_RUNGS
    updates = [r["params"]["iterations"] for r in ladder]
    assert updates == sorted(updates)
    exact = [PACKAGED.methods[r["method"]].guarantee == "exact-retrain" for r in ladder]
    assert sum(exact[:-1]) == 0
    assert exact[-1] == ("retrain" in PACKAGED.methods_for(family))


def test_a_policy_shares_its_budget_among_the_rungs_and_never_less_widely_than_it_says() -> None:
    policy = {"name": "x", "checks": []}
    assert ladders.charged(policy, 1) == policy
    assert ladders.charged(policy, 3)["attempts"] == 3
    assert ladders.charged({**policy, "attempts": 5}, 3)["attempts"] == 5
    assert "attempts" not in policy  # requests share it


def test_the_budget_of_each_attempt_is_fixed_by_the_policy_that_is_recorded() -> None:
    policy = ladders.charged({"name": "x", "checks": [{"verifier": "integrity", "params": {}}], "looks": 2}, 3)
    assert contract.Policy.model_validate(policy).tries == 6  # 0.05 / 6 a test


@one_database
def test_a_request_for_auto_spells_its_ladder_out(client: TestClient, tmp_path: Path) -> None:
    response = ask(client, register(client, tmp_path), 1, method="auto")
    assert response.status_code == 202, response.text
    body = response.json()
    assert body["method"] == "auto"
    assert [r["method"] for r in body["params"]["ladder"]] == ["staged", "sfron"]
    assert body["params"]["ladder"][0]["params"] == {"preset": "gentle", "iterations": 10, "alpha": 1.0}
    assert body["rung"] == {"number": 1, "of": 2, "method": "staged"}
    other = client.get(f"/unlearn-requests/{body['id']}").json()
    assert other["policy"]["name"] == "test-v1"
    plain = {
        "name": "test-v1",
        "checks": [{"verifier": v, "params": {}} for v in ("integrity", "classes_gone", "samples_gone")],
    }
    assert other["policy"]["sha256"] == sha256_of({**plain, "attempts": 2})
    assert [r["method"] for r in client.get("/catalogue").json()["ladders"]["ddpm"]["class"]] == ["staged", "sfron"]


@one_database
def test_auto_takes_no_parameters_and_needs_a_ladder(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    refused = ask(client, model, 1, method="auto", params={"iterations": 5})
    assert (refused.status_code, code_of(refused)) == (422, "invalid_params")
    with pytest.raises(UnknownMethod):
        ladders.choose("resnet", "auto", {}, unit="class")
