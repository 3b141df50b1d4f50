"""Mounted metric weights: in the spec by digest, in the job by a link, for models that draw or complete images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from service import db
from service.tables import Model
from tests.worker.conductor import house as h
from worker.conductor import mounted, pipeline
from worker.conductor.outcomes import Died
from worker.contract import FileEntry, tree_digest

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.one_database]
NAMES = ("inception.pt", "clip/config.json")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "mounted"
    (folder / "clip").mkdir(parents=True)
    (folder / "inception.pt").write_bytes(b"a network")
    (folder / "clip" / "config.json").write_bytes(b"{}")
    return folder


def of_family(house: h.House, family: str) -> None:
    with db.transaction() as session:
        session.get_one(Model, house.model_id).family = family


def spec_of(kept: Path) -> dict[str, object]:
    spec: dict[str, object] = json.loads((kept / "spec-1.json").read_text())
    return spec


@pytest.mark.parametrize("family", ["mae", "ddpm"])
def test_a_model_that_makes_images_has_them_in_spec_and_job(house: h.House, kept: Path, weights: Path, family: str) -> None:
    of_family(house, family)
    room = h.make_room(metric_weights=weights)
    assert pipeline.run(h.ask(house, 3), room) == "succeeded"
    sha256 = {name: hashlib.sha256((weights / name).read_bytes()).hexdigest() for name in NAMES}
    digest = tree_digest([FileEntry(path=n, size=(weights / n).stat().st_size, sha256=s) for n, s in sha256.items()])
    assert spec_of(kept)["metric_weights_digest"] == digest
    assert json.loads((kept / "metric_weights.json").read_text()) == digest
    assert sorted(p.relative_to(weights).as_posix() for p in weights.rglob("*") if p.is_file()) == sorted(NAMES)  # still there


def test_a_classifier_knows_nothing_of_them(house: h.House, kept: Path, weights: Path) -> None:
    of_family(house, "classifier")
    assert pipeline.run(h.ask(house, 3), h.make_room(metric_weights=weights)) == "succeeded"
    assert "metric_weights_digest" not in spec_of(kept)
    assert not (kept / "metric_weights.json").exists()


def test_without_the_setting_a_spec_is_what_it_was(house: h.House, kept: Path) -> None:
    of_family(house, "mae")
    assert pipeline.run(h.ask(house, 3), h.make_room()) == "succeeded"
    assert "metric_weights_digest" not in spec_of(kept)


def test_a_worker_whose_folder_is_missing_leaves_the_request_to_another_try(house: h.House, tmp_path: Path) -> None:
    of_family(house, "mae")
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, h.make_room(metric_weights=tmp_path / "nowhere")) == "queued"
    (attempt,) = h.attempts(request_id)
    assert "EXPUNGE_METRIC_WEIGHTS" in json.dumps(attempt.detail)


def test_links_are_refused_for_the_engine_would_not_follow_them(weights: Path) -> None:
    (weights / "clip" / "model.safetensors").symlink_to(weights / "inception.pt")
    with pytest.raises(Died, match=r"found the link clip/model\.safetensors"):
        mounted.metric_weights(h.make_room(metric_weights=weights).settings, lambda: None)


def test_a_file_that_changed_is_hashed_again(weights: Path) -> None:
    settings = h.make_room(metric_weights=weights).settings
    before = mounted.metric_weights(settings, lambda: None)
    assert mounted.metric_weights(settings, lambda: pytest.fail("hashed a file that nobody changed")) == before
    (weights / "inception.pt").write_bytes(b"another network")
    assert mounted.metric_weights(settings, lambda: None) != before
