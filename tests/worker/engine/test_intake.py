"""Reading a spec: presets under what was given, and every name that is not known refused with the ones that are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worker.engine.unlearning_job import make_job
from worker.engine import registry
from worker.engine.errors import BadInput
from worker.engine.intake import default_preset, effective, read_spec

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
    assert effective(SFRON, "ddpm", once.model_dump(mode="json")) == once


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_every_preset_is_valid_for_every_family_it_names(name: str) -> None:
    method = registry.methods()[name]
    for preset, entry in method.presets.items():
        assert set(entry.families) <= set(method.families)
        assert entry.source
        for family in entry.families:
            assert effective(method, family, {"preset": preset}).preset == preset


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"unknown preset 'fast'.*known: ddpm, cifar10-ddpm"):
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
