"""The packaged policies, which one a request is held to, and what /policies says of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import db
from service.app import create_app
from service.config import Settings
from service.errors import PolicyUnfit, UnknownPolicy
from service.policies import service as policies
from service.policies.service import PolicyInvalid
from service.requests.service import sha256_of
from tests.support import LOCAL_URL, ask, code_of, one_database, register, write_json
from worker import contract, verdict
from worker.engine.panel import SLACK
from worker.engine.statistics import paired_difference_upper

TIERED = ("default-v1", "fast-v1", "strict-v1")
PACKAGED = sorted(path.stem for path in policies.FOLDER.glob("*.json"))


def document(name: str) -> dict[str, Any]:
    return policies.read(policies.FOLDER / f"{name}.json")


def by_verifier(policy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["verifier"]: check["params"] for check in policy["checks"]}


# ------------------------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_policy_resolves_into_one_that_the_worker_takes(name: str) -> None:
    """And its digest in the ledger is the one in the worker's reports, so it must spell out every default."""
    assert document(name)["name"] == name
    kinds = policies.kinds_of(document(name))
    assert kinds
    for kind in kinds:
        policy = policies.resolved(document(name), kind)
        theirs = contract.Policy.model_validate(policy)
        assert sha256_of(policy) == policies.digest(policy) == contract.document_digest(theirs)


@pytest.mark.parametrize("name", TIERED)
@pytest.mark.parametrize("kind", ["generator", "classifier", "i2i"])
def test_a_tiered_policy_serves_every_kind_and_says_which_so_that_tiers_can_be_reached(name: str, kind: Any) -> None:
    policy = policies.resolved(document(name), kind)
    policies.require_fit(policy, kind, ["class"])
    assert (policy["name"], policy["kind"]) == (name, kind)
    if kind == "classifier":
        for units in (["sample"], ["class", "sample"]):
            policies.require_fit(policy, kind, units)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TIERED)
@pytest.mark.parametrize("kind", ["generator", "classifier", "i2i"])
def test_every_check_of_every_tier_is_asked_for(name: str, kind: Any) -> None:
    asked = {c["verifier"] for c in document(name)["kinds"][kind]["checks"]}
    assert set().union(*verdict.TIERS[kind].values()) <= asked


def test_the_strict_policy_asks_no_less_than_the_default_and_the_fast_one_draws_fewest() -> None:
    default, fast, strict = (by_verifier(policies.resolved(document(n), "generator")) for n in TIERED)
    assert set(strict) == set(default)
    assert (strict["forget_rate"]["max_rate"], default["forget_rate"]["max_rate"]) == (0.02, 0.05)
    assert strict["feature_distance"]["max_ratio"] < default["feature_distance"]["max_ratio"]
    assert document("strict-v1")["kinds"]["generator"]["judge"]["slack"] < SLACK
    assert fast["forget_rate"]["n_per_class"] == 200
    assert 10 <= policies.resolved(document("fast-v1"), "generator")["sampling"]["steps"] <= 20


@pytest.mark.parametrize("name", ["default-v1", "strict-v1"])
def test_what_is_published_keeps_each_class_by_bounds_that_a_hundred_classes_can_meet(name: str) -> None:
    """What each of 99 classes can be held to at most, were all samples recognised as before: at 5 % / 6 / 99 of 200 .062."""
    part = policies.resolved(document(name), "generator")
    alpha = 0.05 / (part["looks"] * part["attempts"])
    kept = by_verifier(part)["retain_accuracy"]
    assert paired_difference_upper(0, 0, kept["n_per_class"], alpha=alpha / 99) <= kept["max_class_drop"]
    assert kept["max_neighbour_drop"] is not None
    completed = by_verifier(policies.resolved(document(name), "i2i"))["retain_completion"]
    assert paired_difference_upper(0, 0, completed["n_per_class"], alpha=alpha / 99) <= completed["max_class_drop"]


def test_the_fast_policy_draws_too_few_to_hold_one_class_of_nine() -> None:
    """80 samples at 5 % / 2 / 9: .085. A bound of .08 would make every result underpowered."""
    kept = by_verifier(policies.resolved(document("fast-v1"), "generator"))["retain_accuracy"]
    assert paired_difference_upper(0, 0, kept["n_per_class"], alpha=0.05 / 2 / 9) > 0.08
    assert kept.get("max_class_drop") is None


def test_counts_of_one_are_left_out_as_the_workers_document_leaves_them_out() -> None:
    classifier = policies.resolved(document("default-v1"), "classifier")
    assert "looks" not in classifier
    assert classifier["attempts"] == 3


CHECKS = [{"verifier": "integrity"}, {"verifier": "forget_rate", "params": {"n_per_class": 200, "max_rate": 0.05}}]
TERSE: dict[str, Any] = {
    "nothing but checks": {},
    "a part of the sampling": {"sampling": {"steps": 10}},
    "a part of the judge": {"judge": {"epochs": 3}},
    "whole numbers for fractions and the reverse": {
        "sampling": {"guidance_scale": 2, "steps": 20.0},
        "judge": {"min_accuracy": 1},
    },
    "what is left out, said": {
        "looks": 1,
        "attempts": 1,
        "kind": None,
        "judge": {"judges": 1},
        "sampling": {"corruptions": []},
    },
    "more than one of each": {"looks": 2, "attempts": 3, "kind": "generator", "judge": {"judges": 2}},
    "a mask without a seed": {"sampling": {"corruptions": [{"kind": "center", "ratio": 0.25}]}},
}


@pytest.mark.parametrize("case", TERSE)
@pytest.mark.parametrize("of_kinds", [False, True])
def test_what_an_operators_file_leaves_out_is_filled_in_as_the_worker_does(tmp_path: Path, case: str, of_kinds: bool) -> None:
    part = {"checks": CHECKS, **TERSE[case]}
    if of_kinds:
        part.pop("kind", None)
    written = {"name": "mine", "kinds": {"generator": part}} if of_kinds else {"name": "mine", **part}
    policy = policies.resolved(policies.read(write_json(tmp_path / "p.json", written)), "generator")
    theirs = contract.Policy.model_validate({"name": "mine", **part, **({"kind": "generator"} if of_kinds else {})})
    assert policy == theirs.model_dump(mode="json")
    assert policies.digest(policy) == contract.document_digest(theirs)


def test_a_policy_without_a_part_for_the_kind_is_unfit(tmp_path: Path) -> None:
    part = document("fast-v1")["kinds"]["generator"]
    settings = Settings(policy_file=write_json(tmp_path / "p.json", {"name": "mine", "kinds": {"generator": part}}))
    assert policies.current_policy(settings, "ddpm", ["class"])["kind"] == "generator"
    with pytest.raises(PolicyUnfit, match="not for a classifier"):
        policies.current_policy(settings, "classifier", ["class"])


def test_a_policy_of_one_kind_is_unfit_for_another(tmp_path: Path) -> None:
    """`integrity` and `compression`-like checks look at several kinds; the tiers of one are not those of another."""
    policy = {**policies.resolved(document("fast-v1"), "classifier"), "kind": "generator"}
    settings = Settings(policy_file=write_json(tmp_path / "p.json", policy))
    with pytest.raises(PolicyUnfit, match="is for a generator"):
        policies.current_policy(settings, "classifier", ["class"])


BROKEN: dict[str, Any] = {
    "no kinds": {},
    "an unknown kind": {"poet": {"checks": [{"verifier": "integrity"}]}},
    "a kind without checks": {"generator": {"checks": []}},
    "a kind that is a list": {"generator": []},
    "kinds that are a list": ["generator"],
    "looks beyond the schema": {"generator": {"checks": [{"verifier": "forget_rate"}], "looks": 99}},
    "an unknown key": {"generator": {"checks": [{"verifier": "forget_rate"}], "lucks": 2}},
    "an unknown check": {"generator": {"checks": [{"verifier": "no_such_check"}]}},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_of_several_kinds_that_is_no_policy_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(PolicyInvalid):
        policies.read(write_json(tmp_path / "p.json", {"name": "x", "kinds": BROKEN[case]}))


# -------------------------------------------------------------------------------------------------------- which applies


def test_a_request_may_name_any_packaged_policy_and_an_unknown_name_lists_them(tmp_path: Path) -> None:
    settings = Settings(policy_file=None)
    assert policies.current_policy(settings, "ddpm", ["class"], "strict-v1")["name"] == "strict-v1"
    assert policies.current_policy(settings, "ddpm", ["class"])["name"] == "basic-v1"
    for name in ("nonesuch", "../fast-v1", ""):
        with pytest.raises(UnknownPolicy, match=", ".join(PACKAGED)):
            policies.current_policy(settings, "ddpm", ["class"], name)
    with pytest.raises(PolicyUnfit):
        policies.current_policy(settings, "ddpm", ["class"], "classifier-v1")


def test_no_request_may_name_an_easier_policy_than_the_operators(tmp_path: Path) -> None:
    settings = Settings(policy_file=policies.FOLDER / "strict-v1.json")
    for name in (None, "strict-v1"):
        assert policies.current_policy(settings, "ddpm", ["class"], name)["name"] == "strict-v1"
    with pytest.raises(UnknownPolicy, match="expected one of: strict-v1"):
        policies.current_policy(settings, "ddpm", ["class"], "fast-v1")


@one_database
def test_the_name_decides_what_the_request_is_held_to(client: TestClient, tmp_path: Path) -> None:
    """Under the operator's file of these tests."""
    model = register(client, tmp_path)
    taken = ask(client, model, 1, policy="test-v1")
    assert (taken.status_code, taken.json()["policy"]["name"]) == (202, "test-v1")
    refused = ask(client, model, 2, policy="fast-v1")
    assert (refused.status_code, code_of(refused)) == (422, "unknown_policy")
    assert refused.json()["detail"] == "expected one of: test-v1"
    assert refused.json()["errors"][0]["pointer"] == "/policy"
    assert "fast-v1" not in refused.text


# ----------------------------------------------------------------------------------------------------------- endpoints


@pytest.fixture
def packaged(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The service without an operator's policy, with the packaged catalogue."""
    monkeypatch.delenv("EXPUNGE_POLICY_FILE", raising=False)
    db.reset()
    with TestClient(create_app(), base_url=LOCAL_URL, raise_server_exceptions=False) as opened:
        yield opened


@one_database
def test_policies_are_listed_with_the_kinds_that_they_are_for(packaged: TestClient) -> None:
    listed = {p["name"]: p for p in packaged.get("/policies").json()["data"]}
    assert sorted(listed) == PACKAGED
    assert listed["fast-v1"]["kinds"] == ["generator", "classifier", "i2i"]
    assert listed["basic-v1"]["kinds"] == ["generator"]
    assert listed["basic-v1"]["default_for"] == [{"kind": "generator", "forgotten": ["class"]}]
    assert listed["fast-v1"]["default_for"] == []


@one_database
def test_a_policy_is_shown_as_certificates_digest_it(packaged: TestClient) -> None:
    shown = packaged.get("/policies/fast-v1").json()
    for part in shown["by_kind"].values():
        assert part["sha256"] == contract.document_digest(contract.Policy.model_validate(part["policy"]))
    missing = packaged.get("/policies/nonesuch")
    assert (missing.status_code, code_of(missing)) == (404, "policy_not_found")


@one_database
def test_an_operators_terse_policy_is_shown_as_certificates_digest_it(
    packaged: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {"name": "mine", "checks": CHECKS}
    monkeypatch.setattr(packaged.app.state.settings, "policy_file", write_json(tmp_path / "p.json", written))  # type: ignore[attr-defined]
    shown = packaged.get("/policies/mine").json()["by_kind"]["generator"]
    assert shown["sha256"] == contract.document_digest(contract.Policy.model_validate(written))
    assert shown["policy"]["judge"]["min_accuracy"] == 0.95


@one_database
def test_under_an_operators_policy_it_is_the_only_one(client: TestClient) -> None:
    (only,) = client.get("/policies").json()["data"]
    assert only["name"] == "test-v1"
    assert client.get("/policies/fast-v1").status_code == 404
