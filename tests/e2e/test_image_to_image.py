"""An image-to-image model's journey on the embedded default: a class forgotten, with other images in place of retained ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.client import ApiError, Client
from service.demo import register_example, service
from service.verifier.certificate import verify_directory
from tests.worker.engine.tiny import NAMES, striped
from tests.worker.engine.tiny import mae as tiny
from worker.engine.families.mae import MaskedAutoencoder

pytestmark = pytest.mark.slow
"""Half a minute of one core; the classifier's journey goes the same way in the default suite."""

PER_CLASS, HELD_OUT = 300, 150
"""No hit in 150 held-out images, neither by the candidate nor by a reference, bounds the difference by 2.5 %."""
OTHERS = ("checks", "frame", "dots")


@dataclass
class Registered:
    """A running service, its folder, the masked autoencoder that it knows, and another dataset."""

    client: Client
    home: Path
    model: str
    others: str


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    home = tmp_path_factory.mktemp("completer")
    images, labels = striped(PER_CLASS, channels=1, side=tiny.SIDE)
    held_out = [str(k * PER_CLASS + i) for k in range(len(NAMES)) for i in range(HELD_OUT)]
    (home / "dataset").mkdir()
    np.savez(home / "dataset" / "data.npz", images=images, labels=labels)
    write_trained(home / "model", images[[i for i in range(len(labels)) if str(i) not in held_out]])
    example = {
        "family": "mae",
        "dataset": str(home / "dataset"),
        "model": str(home / "model"),
        "class_names": list(NAMES),
        "held_out_ids": held_out,
    }
    with service(home, None) as (client, _):
        model = register_example(client, example)
        yield Registered(client, home, str(model["id"]), register_others(client, home / "others"))


def write_trained(folder: Path, images: np.ndarray) -> None:
    """The tiny masked autoencoder after a few plain steps, without dropout: it completes all four patterns."""
    torch.manual_seed(0)
    tiny.write_model(folder.with_name("fresh"), tiny.ViTMAEForPreTraining(tiny.config(hidden_dropout_prob=0.0)).eval())
    model = MaskedAutoencoder.load(folder.with_name("fresh"), labels=NAMES, device=torch.device("cpu"))
    held_N = model.hold(torch.from_numpy(images)[:, None])
    y_B = torch.zeros(128, dtype=torch.int64)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(360):
        pick = torch.randperm(len(images), generator=generator)[:128]
        draw = model.draw(128, (1, tiny.SIDE, tiny.SIDE), generator, label_drop=0.0)
        optimizer.zero_grad()
        model.loss(model.prepare(held_N[pick], draw), y_B, draw).mean().backward()
        optimizer.step()
    model.save(folder, folder.with_name("fresh"))


def register_others(client: Client, folder: Path) -> str:
    """A dataset of three other patterns; its id."""
    y, x = np.mgrid[: tiny.SIDE, : tiny.SIDE]
    last = tiny.SIDE - 1
    patterns = np.stack([(x // 2 + y // 2) % 2, (x % last == 0) | (y % last == 0), (x % 4 == 0) & (y % 4 == 0)])
    labels = np.repeat(np.arange(len(OTHERS)), 60)
    noise = np.random.default_rng(6).integers(0, 50, (len(labels), tiny.SIDE, tiny.SIDE))
    folder.mkdir()
    np.savez(folder / "data.npz", images=(200 * patterns[labels] + noise).astype(np.uint8), labels=labels)
    body = {"format": "npz", "location": str(folder), "class_names": list(OTHERS)}
    return str(client.post("/datasets", body)["id"])


def ask(registered: Registered, *classes: str, **retain: Any) -> dict[str, Any]:
    """The request as it was taken."""
    params = {"precision": "fp32", "iterations": 100, "batch_size": 32, "learning_rate": 1e-3}
    wanted = {"model_id": registered.model, "forget": {"classes": classes}, "retain": retain, "seed": 0, "params": params}
    answer: dict[str, Any] = registered.client.post("/unlearn-requests", wanted)
    return answer


def predicate_of(checkpoint: Path) -> dict[str, Any]:
    envelope = json.loads((checkpoint / "UNLEARNING" / "certificate.sigstore.json").read_text())["dsseEnvelope"]
    predicate: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    return predicate


def test_a_class_is_forgotten_with_proxy_data_verified_and_signed(registered: Registered, tmp_path: Path) -> None:
    """Forgotten: columns. Half of the images to be kept are real; the rest are diagonals, set aside, and another dataset's."""
    proxy = {"classes": ["diagonal"], "dataset_id": registered.others}
    request = registered.client.requests.watch(ask(registered, "columns", real=0.5, proxy=proxy)["id"], lambda _: None)
    assert request["status"] == "succeeded", request["error"]
    assert (request["method"], request["policy"]["name"]) == ("encoder_l2", "i2i-v1")
    found = {(f["check"], f["metric"], f["subject"]): f for f in request["findings"] if f["gating"] or f["control"]}
    assert found["forget_completion", "completed_region_excess", "candidate"]["passed"] is True
    assert found["forget_completion", "completed_region_excess", "original"]["passed"] is False  # the control: it knew
    assert found["retain_completion", "retain_accuracy_drop", "candidate"]["n"] == 2 * HELD_OUT  # rows and blank

    registered.client.checkpoints.download(request["checkpoint_id"], tmp_path / "checkpoint")
    outcome = verify_directory(tmp_path / "checkpoint", registered.home / "data" / "keys" / "signing.pub")
    assert outcome.valid, outcome.reason
    assert outcome.facts["forgotten_class_names"] == ["columns"]
    assert outcome.facts["retain_data"]["proxy_class_names"] == ["diagonal"]
    predicate = predicate_of(tmp_path / "checkpoint")
    others = registered.client.get(f"/datasets/{registered.others}")
    assert predicate["retainData"] == {
        "real": "0.5",
        "classes": [0, 3],
        "proxyClasses": [2],
        "proxyDataset": {"id": registered.others, "digest": others["digest"], "classNames": list(OTHERS)},
    }
    assert any("set aside" in limit for limit in predicate["limits"])


def test_what_is_forgotten_or_would_leave_nothing_to_verify_does_not_stand_in(registered: Registered) -> None:
    for classes, retain, code in (
        (["rows"], {"proxy": {"classes": ["rows"]}}, "proxy_forgotten"),
        (["rows"], {"proxy": {"classes": ["diagonal", "blank", "columns"]}}, "proxy_forgotten"),
        (["rows", "blank"], {"proxy": {"classes": ["diagonal"]}}, "nothing_to_retain"),
    ):
        with pytest.raises(ApiError) as refused:
            ask(registered, *classes, **retain)
        assert (refused.value.status, refused.value.code) == (422, code)
