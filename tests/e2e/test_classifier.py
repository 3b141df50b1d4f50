"""A classifier's journey on the embedded default: a class forgotten, verified, signed; what cannot be verified, refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from service.client import ApiError, Client
from service.demo import register_example, service
from service.verifier.certificate import verify_directory
from tests.worker.engine.tiny import NAMES, case, striped
from worker.engine.families.classifier import ImageClassifier

PER_CLASS, HELD_OUT = 300, 150
"""0 of 150 held-out hits bound an accuracy by 2.0 %, 0 of 450 changed pairs a drop by less than 1 point."""


@dataclass
class Registered:
    """A running service, its folder, and the classifier that it knows."""

    client: Client
    home: Path
    model: str


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    home = tmp_path_factory.mktemp("classifier")
    held_out = write_dataset(home / "dataset")
    write_trained(home / "model", home / "dataset", set(held_out))
    example = {
        "family": "classifier",
        "dataset": str(home / "dataset"),
        "model": str(home / "model"),
        "class_names": list(NAMES),
        "held_out_ids": held_out,
    }
    with service(home, None) as (client, _):
        yield Registered(client, home, str(register_example(client, example)["id"]))


def write_dataset(folder: Path) -> list[str]:
    """Striped images; returns the ids that are held out, half of each class."""
    shape = case("classifier")
    images, labels = striped(PER_CLASS, channels=shape.channels, side=shape.side)
    folder.mkdir()
    np.savez(folder / "data.npz", images=images, labels=labels)
    return [str(k * PER_CLASS + i) for k in range(len(NAMES)) for i in range(HELD_OUT)]


def write_trained(folder: Path, dataset: Path, held_out: set[str]) -> None:
    """The tiny classifier after a few plain steps on the training images: it knows all four patterns."""
    case("classifier").write(folder)
    model = ImageClassifier.load(folder, labels=NAMES, device=torch.device("cpu"))
    arrays = np.load(dataset / "data.npz")
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    train = torch.tensor([str(i) not in held_out for i in range(len(labels))])
    x, y = images[train], labels[train]
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    model.module.train()
    for _ in range(60):
        pick = torch.randperm(len(x), generator=generator)[:64]
        draw = model.draw(64, x.shape[1:], generator, label_drop=0.0)
        loss = F.cross_entropy(model._ask(None, model.prepare(model.hold(x[pick]), draw)), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.module.eval()
    trained = folder.with_name("trained")
    model.save(trained, folder)
    for file in trained.iterdir():
        file.replace(folder / file.name)


def ask(registered: Registered, **forget: Any) -> dict[str, Any]:
    """The request once it has ended."""
    wanted = {"model_id": registered.model, "forget": forget, "seed": 0, "params": {"precision": "fp32"}}
    request = registered.client.post("/unlearn-requests", wanted)
    return registered.client.requests.watch(request["id"], lambda _: None)


def test_a_class_is_forgotten_verified_and_signed(registered: Registered, tmp_path: Path) -> None:
    request = ask(registered, classes=["columns"])
    assert request["status"] == "succeeded", request["error"]
    assert (request["method"], request["params"]["preset"], request["policy"]["name"]) == (
        "sfron",
        "classifier",
        "classifier-v1",
    )
    found = {(f["check"], f["subject"]): f for f in request["findings"] if f["class_index"] == 1 and f["passed"] is not None}
    assert found["forget_accuracy", "candidate"]["upper95"] <= 0.05
    assert found["forget_accuracy", "original"]["passed"] is False  # the control: it knew the class
    registered.client.checkpoints.download(request["checkpoint_id"], tmp_path / "checkpoint")
    outcome = verify_directory(tmp_path / "checkpoint", registered.home / "data" / "keys" / "signing.pub")
    assert outcome.valid, outcome.reason
    assert outcome.facts["forgotten_class_names"] == ["columns"]


def test_a_model_that_remembers_no_single_image_cannot_be_shown_to_forget_one(registered: Registered) -> None:
    """The patterns are so simple that seen and unseen images look alike to the original: the control passes, so VOID."""
    request = ask(registered, samples=[str(k * PER_CLASS + HELD_OUT + i) for k in (0, 2, 3) for i in range(100)])
    assert request["status"] == "failed"
    assert request["verdict"] == "VOID", request["error"]
    # the class that the test above made it forget is measured again
    assert request["policy"]["name"] == "classifier-classes-and-samples-v1"
    measured = {(f["check"], f["class_name"]) for f in request["findings"] if f["control"]}
    assert measured == {("forget_accuracy", "columns"), ("sample_membership", None)}


def test_classes_and_samples_at_once_are_refused(registered: Registered) -> None:
    with pytest.raises(ApiError) as refused:
        ask(registered, classes=["rows"], samples=["400"])
    assert refused.value.status == 422
