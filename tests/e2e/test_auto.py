"""`auto` with the real engine: the first recipe that passes is published, at bounds that all recipes of the ladder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.verifier.certificate import verify_directory
from tests.e2e.test_classifier import HELD_OUT, Registered, registered

__all__ = ["registered"]
pytestmark = pytest.mark.slow


def test_the_cheapest_recipe_that_passes_is_published_at_its_share_of_the_budget(
    registered: Registered, tmp_path: Path
) -> None:
    wanted = {"model_id": registered.model, "forget": {"classes": ["columns"]}, "seed": 0, "method": "auto"}
    request = registered.client.requests.watch(registered.client.post("/unlearn-requests", wanted)["id"], lambda _: None)
    assert request["status"] == "succeeded", request["error"]
    assert request["rung"] == {"number": 1, "of": 3, "method": "sfron"}
    (attempt,) = request["attempts"]
    assert (attempt["rung"], attempt["method"], attempt["verdict"]) == (1, "sfron", "PASS")
    (found,) = [f for f in request["findings"] if f["gating"] and f["check"] == "forget_accuracy"]
    assert (found["n"], found["count"]) == (HELD_OUT, 0)
    registered.client.checkpoints.download(request["checkpoint_id"], tmp_path / "checkpoint")
    outcome = verify_directory(tmp_path / "checkpoint", registered.home / "data" / "keys" / "signing.pub")
    assert outcome.valid, outcome.reason
    assert (outcome.facts["requested_method"], outcome.facts["attempt"], outcome.facts["attempts"]) == ("auto", 1, 3)
    assert found["upper95"] == pytest.approx(1 - (0.05 / 3) ** (1 / HELD_OUT))  # Clopper-Pearson of no hit, a third of 5 %
