"""Reading a spec: presets under what was given, and every name that is not known refused with the ones that are."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from service import catalogue
from service.errors import InvalidParams
from tests.worker.engine.unlearning_job import PAIRS, make_job
from worker.engine import registry
from worker.engine.errors import BadInput
from worker.engine.intake import default_preset, effective, read_spec, recorded, without_effect
from worker.engine.method import Unit

SFRON = registry.methods()["sfron"]


def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_defaults() -> None:
    params = effective(SFRON, "ddpm", {"preset": "cifar10-ddpm", "iterations": 7})
    assert params.iterations == 7
    assert params.batch_size == 128  # the preset's
    assert params.temperature == 0.5  # type: ignore[attr-defined]  # the method's


def test_without_a_word_the_family_s_first_preset_is_taken() -> None:
    assert effective(SFRON, "ddpm", {}).preset == default_preset(SFRON, "ddpm", "class") == "ddpm"


def test_null_asks_for_no_preset() -> None:
    params = effective(SFRON, "ddpm", {"preset": None})
    assert params.preset is None
    assert params.batch_size == SFRON.Params().batch_size


def test_applied_to_its_own_answer_it_changes_nothing() -> None:
    once = effective(SFRON, "ddpm", {"iterations": 7})
    assert effective(SFRON, "ddpm", recorded(SFRON, "ddpm", once)) == once


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_every_preset_is_valid_for_every_family_it_names(name: str) -> None:
    method = registry.methods()[name]
    for preset, entry in method.presets.items():
        assert set(entry.families) <= set(method.families)
        assert entry.source
        for family in entry.families:
            assert effective(method, family, {"preset": preset}).preset == preset


@pytest.mark.parametrize(
    ("name", "family", "given", "sentence"),
    [
        ("finetune", "classifier", {"label_drop": 0.1}, "label_drop: has no effect on family classifier"),
        ("sfron", "classifier", {"forget_label_drop": 0.0}, "forget_label_drop: has no effect on family classifier"),
        ("scrub", "ddpm", {"temperature": 4.0}, "temperature: has an effect only where kind is classifier"),
        ("sfron", "dit", {"batch_norm": "frozen"}, "batch_norm: has no effect on family dit"),
        ("sfron", "stable_diffusion", {"augment": "none"}, "augment: has no effect on family stable_diffusion"),
        ("sfron", "ddpm", {"loss_ceiling": 4.0}, "loss_ceiling: has an effect only where forget_loss is ascent"),
        ("sfron", "ddpm", {"fisher": "per_sample", "fisher_batch_size": 1}, "only where fisher is class_batch or batch"),
        ("esd", "ddpm", {"steps": 5, "guidance_scale": 1.0}, "guidance_scale: .*generated; steps: .*generated"),
    ],
)
def test_a_parameter_without_effect_is_refused_with_the_reason(
    name: str, family: str, given: dict[str, object], sentence: str
) -> None:
    """Whatever its value, the default's included: who gives it believes that it decides something."""
    with pytest.raises(BadInput, match=sentence):
        effective(registry.methods()[name], family, given)  # type: ignore[arg-type]
    with pytest.raises(InvalidParams, match=sentence):
        catalogue.effective_params(name, family, given)


def test_what_is_recorded_leaves_out_what_had_no_effect() -> None:
    params = effective(SFRON, "classifier", {"forget_loss": "relabel"})  # the preset's loss_ceiling is no fault of the request
    kept = recorded(SFRON, "classifier", params)
    assert SFRON.Params.model_fields.keys() - kept.keys() == {"label_drop", "forget_label_drop", "loss_ceiling", "gamma"}


@pytest.mark.parametrize(("name", "family"), PAIRS, ids=[f"{m}-{f}" for m, f in PAIRS])
def test_the_service_and_the_engine_come_to_the_same_parameters(name: str, family: str) -> None:
    method = registry.methods()[name]
    presets = [{"preset": p} for p, entry in method.presets.items() if family in entry.families]
    for unit, given in product(get_args(Unit), [{}, {"preset": None}, *presets]):
        theirs = catalogue.effective_params(name, family, given, unit=unit)
        params = effective(method, family, given, unit=unit)
        assert theirs == recorded(method, family, params)
        assert effective(method, family, theirs, unit=unit) == params


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_conditions_and_ignored_keys_name_what_there_is(name: str) -> None:
    """No chains: what a parameter's effect hangs on always has one itself."""
    method = registry.methods()[name]
    conditions, fields = method.Params.conditions, method.Params.model_fields.keys()
    known = set().union(*(m.Params.model_fields for m in registry.methods().values()))
    assert conditions.keys() <= fields
    assert "kind" not in fields
    for key, needed in conditions.items():
        assert needed.keys() <= (fields - conditions.keys()) | {"kind"}, key
        for family in method.families:
            assert not needed.keys() & registry.families()[family].ignores
            assert registry.families()[family].ignores <= known


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_no_preset_names_a_parameter_without_effect(name: str) -> None:
    method = registry.methods()[name]
    for preset, entry in method.presets.items():
        for family in entry.families:
            idle = without_effect(method, family, effective(method, family, {"preset": preset}))
            assert not idle.keys() & entry.params.keys(), (preset, family)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"unknown preset 'fast'.*known: ddpm, ddpm-robust, cifar10-ddpm"):
        effective(SFRON, "ddpm", {"preset": "fast"})
    with pytest.raises(BadInput, match="unknown preset"):
        effective(SFRON, "classifier", {"preset": "ddpm"})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"forget_classes": (9,)}, "expected some but not all of the classes 0 to 3"),
        ({"forget_classes": (0, 1, 2, 3)}, "expected some but not all"),
        ({"family": "ddpm", "forget_classes": (0, 1), "forgotten_classes": (2, 3)}, "expected some but not all"),
    ],
)
def test_classes_that_cannot_be_forgotten_are_refused(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        read_spec(make_job(tmp_path, **changes))


def test_classes_and_samples_together_or_neither_are_no_spec(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    text = job.spec.read_text()
    for changed in (
        text.replace('"forget_classes":[1]', '"forget_classes":[]'),
        text.replace('"forget_samples":[]', '"forget_samples":["3"]'),
    ):
        assert changed != text
        job.spec.write_text(changed)
        with pytest.raises(BadInput, match="forget_classes or forget_samples"):
            read_spec(job)
