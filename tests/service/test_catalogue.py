"""What may be asked: the packaged catalogue and policy, and what happens when they are wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import catalogue
from service.catalogue import Catalogue, PolicyInvalid
from service.config import Settings
from service.errors import InvalidParams, PolicyUnfit, SamplesUnverifiable, UnknownMethod
from service.values import sha256_of
from tests.support import CATALOGUE, ask, code_of, one_database, register, register_classifier, write_json
from worker import contract, verdict


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
                '{"name": "x", "checks": [{"verifier": "no_such_check"}]}', '{"name": "x", "checks": [{}]}', "[" * 100_000,
                '{"name": "x", "checks": "abc"}', '{"name": "x", "checks": [{"verifier": ["integrity"]}]}',
                '{"name": "x", "checks": [{"verifier": "forget_rate", "params": [1]}]}',
                '{"name": "x", "checks": [{"verifier": "forget_rate", "params": {"max_rate": NaN}}]}',
                '{"name": "x", "checks": [{"verifier": "forget_rate"}, {"verifier": "forget_rate", "params": {}}]}',
                '{"name": "x", "checks": [{"verifier": "forget_rate"}], "judge": {"epochs": 0}}',
                '{"name": "x", "checks": [{"verifier": "forget_rate"}], "smapling": {}}'],
    ids=range(15),
)  # fmt: skip
def test_a_policy_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    """Fail closed: a request must not be taken on a promise that cannot be kept."""
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(PolicyInvalid):
        catalogue.current_policy(Settings(policy_file=path), "ddpm", ["class"])
    with pytest.raises(PolicyInvalid):
        catalogue.current_policy(Settings(policy_file=tmp_path / "missing.json"), "ddpm", ["class"])


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


@one_database
def test_a_parameter_without_effect_is_422_when_given_and_no_part_of_the_request_when_not(
    client: TestClient, tmp_path: Path
) -> None:
    changed = copy.deepcopy(CATALOGUE)
    changed["families"]["ddpm"]["ignores"] = ["alpha", "of_another_method"]
    changed["methods"]["sfron"]["conditions"] = {"iterations": {"optimizer": ["shared"]}}
    write_json(tmp_path / "catalogue.json", changed)
    catalogue.get_catalogue.cache_clear()
    model = register(client, tmp_path)
    assert ask(client, model, 1).json()["params"] == {"optimizer": "dual"}
    assert ask(client, model, 2, params={"optimizer": "shared", "iterations": 9}).json()["params"]["iterations"] == 9
    refused = ask(client, model, 3, params={"alpha": 1.0, "iterations": 9})
    assert (refused.status_code, code_of(refused)) == (422, "invalid_params")
    assert [(e["pointer"], e["detail"]) for e in refused.json()["errors"]] == [
        ("/params/alpha", "alpha: has no effect on family ddpm"),
        ("/params/iterations", "iterations: has an effect only where optimizer is shared"),
    ]


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


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"clip": "x"}, "clip: expected number (exclusiveMinimum 0, maximum 1000000.0) or null"),
        ({"clip": [1]}, "clip: expected number (exclusiveMinimum 0, maximum 1000000.0) or null"),
        ({"clip": 0}, "clip: expected number (exclusiveMinimum 0, maximum 1000000.0) or null"),
    ],
)
def test_a_parameter_that_may_be_null_is_told_what_else_it_may_be(params: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        catalogue.effective_params("finetune", "classifier", params)
    assert str(caught.value) == text


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


def packaged_name(family: str, *units: catalogue.Unit) -> str:
    return str(catalogue.current_policy(Settings(policy_file=None), family, units)["name"])


def test_the_packaged_policy_fits_the_kind_of_model_and_what_is_forgotten(rules: None) -> None:
    assert packaged_name("ddpm", "class") == "basic-v1"
    assert packaged_name("wordy", "class") == "basic-v1"
    assert packaged_name("resnet", "class") == "classifier-v1"
    assert packaged_name("resnet", "sample") == "classifier-samples-v1"
    assert packaged_name("resnet", "sample", "class") == "classifier-classes-and-samples-v1"


def test_an_image_to_image_model_has_a_policy_of_its_own_and_none_for_samples() -> None:
    """By the packaged catalogue."""
    assert packaged_name("mae", "class") == "i2i-v1"
    for units in (["sample"], ["class", "sample"]):
        with pytest.raises(SamplesUnverifiable):
            packaged_name("mae", *units)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [{}, {"corruptions": []}, {"steps": 5}])
def test_a_policy_that_completes_images_and_hides_nothing_is_refused(tmp_path: Path, sampling: dict[str, object]) -> None:
    """By the packaged catalogue. Fail closed: the checks would have nothing to complete, after hours of work."""
    policy = json.loads((catalogue.POLICIES / "i2i-v1.json").read_text()) | {"sampling": sampling}
    settings = Settings(policy_file=write_json(tmp_path / "mine.json", policy))
    with pytest.raises(PolicyUnfit, match="names no corruption"):
        catalogue.current_policy(settings, "mae", ["class"])


def test_the_policy_for_classes_and_samples_asks_all_that_the_two_for_one_of_them_ask() -> None:
    def packaged_checks(name: str) -> list[object]:
        checks: list[object] = json.loads((catalogue.POLICIES / f"{name}.json").read_text())["checks"]
        return checks

    both = packaged_checks("classifier-classes-and-samples-v1")
    for name in ("classifier-v1", "classifier-samples-v1"):
        assert [c for c in packaged_checks(name) if c not in both] == []


def test_a_generators_samples_are_refused_whatever_the_policy(rules: None) -> None:
    for settings in (Settings(), Settings(policy_file=None)):
        with pytest.raises(SamplesUnverifiable, match="generator yet"):
            catalogue.current_policy(settings, "ddpm", ["sample"])


def test_the_operators_policy_wins_over_the_packaged_ones(rules: None) -> None:
    assert catalogue.current_policy(Settings(), "ddpm", ["class"])["name"] == "test-v1"
    assert catalogue.current_policy(Settings(), "resnet", ["sample"])["name"] == "test-v1"


def test_a_policy_with_checks_for_another_kind_of_model_is_refused(rules: None, tmp_path: Path) -> None:
    """Fail closed: a check that cannot look at the model would leave no finding, after hours of work."""
    settings = Settings(policy_file=catalogue.POLICIES / "basic-v1.json")
    assert catalogue.current_policy(settings, "ddpm", ["class"])["name"] == "basic-v1"
    with pytest.raises(PolicyUnfit, match="forget_rate") as caught:
        catalogue.current_policy(settings, "resnet", ["class"])
    assert "integrity" not in str(caught.value)  # it fits


def written(folder: Path, *checks: dict[str, object]) -> Settings:
    return Settings(policy_file=write_json(folder / "mine.json", {"name": "mine", "checks": checks}))


UNMEASURED: dict[str, tuple[list[str], list[catalogue.Unit], str]] = {
    "nothing": (["integrity"], ["class"], "classes"),
    "samples alone, for a class": (["sample_membership"], ["class"], "classes"),
    "classes alone, for a sample": (["forget_accuracy"], ["sample"], "samples"),
    "classes alone, for a class after samples": (["forget_accuracy"], ["class", "sample"], "samples"),
    "samples alone, for a sample after a class": (["sample_membership"], ["class", "sample"], "classes"),
}


@pytest.mark.parametrize("case", UNMEASURED)
def test_a_policy_that_does_not_measure_what_is_forgotten_is_refused(rules: None, tmp_path: Path, case: str) -> None:
    names, units, lacking = UNMEASURED[case]
    settings = written(tmp_path, *({"verifier": name} for name in names))
    with pytest.raises(PolicyUnfit, match=f"measures whether {lacking} are forgotten"):
        catalogue.current_policy(settings, "resnet", units)


def test_one_policy_may_serve_classes_and_samples(rules: None, tmp_path: Path) -> None:
    settings = written(tmp_path, {"verifier": "forget_accuracy"}, {"verifier": "sample_membership"})
    wishes: list[list[catalogue.Unit]] = [["class"], ["sample"], ["class", "sample"]]
    for units in wishes:
        assert catalogue.current_policy(settings, "resnet", units)["name"] == "mine"


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"max_accuracy": 5}, "forget_accuracy: max_accuracy: expected exclusiveMaximum 1"),
        ({"max_accuracy": "x"}, "forget_accuracy: max_accuracy: expected number"),
        ({"foo": 5}, "forget_accuracy: unknown parameter; this check has: max_accuracy"),
    ],
)
def test_thresholds_that_a_check_does_not_have_are_refused(tmp_path: Path, params: dict[str, object], text: str) -> None:
    """By the packaged catalogue: it holds the schema of every check."""
    with pytest.raises(PolicyUnfit) as caught:
        catalogue.current_policy(written(tmp_path, {"verifier": "forget_accuracy", "params": params}), "classifier", ["class"])
    assert str(caught.value) == f"the policy 'mine' has thresholds that do not fit: {text}"


def test_the_packaged_catalogue_says_of_every_check_what_it_measures_and_looks_at(packaged: Catalogue) -> None:
    said = {name: entry.measures for name, entry in packaged.verifiers.items() if entry.measures}
    assert said == verdict.MEASURES_FORGETTING
    assert [name for name, entry in packaged.verifiers.items() if entry.held_out is None] == ["frozen_decoder", "integrity"]
    assert {name for name, entry in packaged.verifiers.items() if entry.completes} == verdict.COMPLETES


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
