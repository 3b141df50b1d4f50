"""What may be asked: the packaged catalogue and policy, and what happens when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import catalogue
from service.catalogue import Catalogue, PolicyInvalid
from service.config import Settings
from service.errors import InvalidParams, PolicyUnfit, SamplesUnverifiable, UnknownMethod
from service.requests.service import sha256_of
from tests.support import ask, code_of, one_database, register, register_classifier
from worker import contract


@pytest.fixture
def packaged() -> Catalogue:
    return Catalogue.model_validate_json(catalogue.CATALOGUE_FILE.read_bytes())


def test_every_method_of_the_packaged_catalogue_takes_its_own_defaults(packaged: Catalogue) -> None:
    for name, method in packaged.methods.items():
        for family in method.families:
            effective = catalogue.effective_params(name, family, {})
            assert catalogue.effective_params(name, family, effective) == effective


def test_every_family_of_the_packaged_catalogue_has_a_default_method(packaged: Catalogue) -> None:
    for family in packaged.families:
        assert catalogue.choose_method(family, None) in packaged.methods


@pytest.mark.parametrize("name", sorted(p.stem for p in catalogue.POLICIES.glob("*.json")))
def test_a_packaged_policy_is_one_that_the_worker_takes(name: str) -> None:
    """And its digest in the ledger is the one in the worker's reports, so it must spell out every default."""
    policy = json.loads((catalogue.POLICIES / f"{name}.json").read_text())
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
        catalogue.current_policy(Settings(policy_file=path), "ddpm", "class")
    with pytest.raises(PolicyInvalid):
        catalogue.current_policy(Settings(policy_file=tmp_path / "missing.json"), "ddpm", "class")


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
    first = catalogue.effective_params("sfron", "ddpm", {})
    first["iterations"] = 1
    assert catalogue.effective_params("sfron", "ddpm", {})["iterations"] == 50
    assert json.loads(json.dumps(first)) == first


# --------------------------------------------------------------------------------------------------------------- presets


def test_what_is_given_goes_before_the_preset_and_the_preset_before_the_schema(rules: None) -> None:
    effective = catalogue.effective_params
    assert effective("staged", "ddpm", {}) == {"preset": "gentle", "iterations": 10, "alpha": 1.0}  # the family's default
    assert effective("staged", "resnet", {}) == {"preset": "labels", "iterations": 50, "alpha": 3.0}
    assert effective("staged", "wordy", {}) == {"preset": None, "iterations": 50, "alpha": 1.0}  # it has none
    harsh = {"preset": "harsh", "iterations": 900, "alpha": 9.0}
    assert effective("staged", "ddpm", {}, unit="sample") == harsh
    assert effective("staged", "ddpm", {"preset": "harsh"}) == harsh
    assert effective("staged", "ddpm", {"preset": "harsh", "alpha": 2.0}) == {**harsh, "alpha": 2.0}
    assert effective("staged", "ddpm", {"iterations": 7}) == {"preset": "gentle", "iterations": 7, "alpha": 1.0}
    assert effective("staged", "ddpm", {"preset": None}) == {"preset": None, "iterations": 50, "alpha": 1.0}  # none, please


def test_effective_parameters_are_a_fixed_point(rules: None) -> None:
    """The engine applies the same rule to what the row holds, and must come to the same."""
    for family in ("ddpm", "resnet", "wordy"):
        effective = catalogue.effective_params("staged", family, {"alpha": 4.0})
        assert catalogue.effective_params("staged", family, effective) == effective


def test_a_method_without_presets_is_given_none(rules: None) -> None:
    assert "preset" not in catalogue.effective_params("sfron", "ddpm", {})


@pytest.mark.parametrize(
    ("family", "preset", "known"),
    [
        ("ddpm", "labels", "gentle, harsh"),
        ("resnet", "gentle", "labels"),
        ("ddpm", "no such", "harsh"),
        ("wordy", "harsh", "none"),
    ],
)
def test_a_preset_of_another_family_is_refused_and_the_known_ones_are_named(
    rules: None, family: str, preset: str, known: str
) -> None:
    with pytest.raises(InvalidParams, match=known) as caught:
        catalogue.effective_params("staged", family, {"preset": preset})
    assert caught.value.pointer == "/params/preset"
    assert preset not in str(caught.value)


@pytest.mark.parametrize("params", [{"preset": 3}, {"preset": ["gentle"]}, {"preset": "harsh", "iterations": 0}])
def test_a_preset_does_not_loosen_the_schema(rules: None, params: dict[str, object]) -> None:
    with pytest.raises(InvalidParams):
        catalogue.effective_params("staged", "ddpm", params)


@one_database
def test_a_request_shows_the_preset_that_it_was_made_with(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    shown = ask(client, model, 1, method="staged", params={"alpha": 2.0}).json()
    assert shown["params"] == {"preset": "gentle", "iterations": 10, "alpha": 2.0}
    refused = ask(client, model, 2, method="staged", params={"preset": "labels"})
    assert (refused.status_code, code_of(refused)) == (422, "invalid_params")
    presets = client.get("/catalogue").json()["methods"]["staged"]
    assert presets["presets"]["harsh"] == {
        "families": ["ddpm"],
        "params": {"iterations": 900, "alpha": 9.0},
        "source": "a paper",
    }
    assert presets["default_presets"] == {
        "ddpm": {"class": "gentle", "sample": "harsh"},
        "resnet": {"class": "labels"},
        "wordy": {"class": None},
    }


# ---------------------------------------------------------------------------------------------------- which policy applies


def packaged_name(family: str, unit: catalogue.Unit) -> str:
    return str(catalogue.current_policy(Settings(policy_file=None), family, unit)["name"])


def test_the_packaged_policy_fits_the_kind_of_model_and_what_is_forgotten(rules: None) -> None:
    assert packaged_name("ddpm", "class") == "basic-v1"
    assert packaged_name("wordy", "class") == "basic-v1"
    assert packaged_name("resnet", "class") == "classifier-v1"
    assert packaged_name("resnet", "sample") == "classifier-samples-v1"


def test_a_generators_samples_are_refused_whatever_the_policy(rules: None) -> None:
    for settings in (Settings(), Settings(policy_file=None)):
        with pytest.raises(SamplesUnverifiable, match="generator yet"):
            catalogue.current_policy(settings, "ddpm", "sample")


def test_the_operators_policy_wins_over_the_packaged_ones(rules: None) -> None:
    assert catalogue.current_policy(Settings(), "ddpm", "class")["name"] == "test-v1"
    assert catalogue.current_policy(Settings(), "resnet", "sample")["name"] == "test-v1"


def test_a_policy_with_checks_for_another_kind_of_model_is_refused(rules: None, tmp_path: Path) -> None:
    """Fail closed: a check that cannot look at the model would leave no finding, after hours of work."""
    settings = Settings(policy_file=catalogue.POLICIES / "basic-v1.json")
    assert catalogue.current_policy(settings, "ddpm", "class")["name"] == "basic-v1"
    with pytest.raises(PolicyUnfit, match="forget_rate") as caught:
        catalogue.current_policy(settings, "resnet", "class")
    assert "integrity" not in str(caught.value)  # it fits


@one_database
def test_a_request_under_an_unfit_policy_is_422(client: TestClient, tmp_path: Path) -> None:
    model = register_classifier(client, tmp_path)
    (tmp_path / "policy.json").write_text((catalogue.POLICIES / "basic-v1.json").read_text())
    response = ask(client, model, 1)
    assert (response.status_code, code_of(response)) == (422, "policy_unfit")


def test_a_catalogue_without_kinds_is_one_of_generators_and_of_checks_for_everything() -> None:
    """Files printed before there were kinds stay readable."""
    old = Catalogue.model_validate({"families": {"f": {}}, "methods": {}, "verifiers": {"v": {}}})
    assert (old.families["f"].kind, old.families["f"].prompts) == ("generator", False)
    assert old.verifiers["v"].kinds == ("generator", "classifier")
