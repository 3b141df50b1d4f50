"""A judge: a small classifier that says which class an image shows, or the hidden part of one.

It is trained by the service on the registered data's training split, never on held-out items, never by the unlearner, and
it is cached by everything that decides its weights. A cached judge is believed only after its weights hash to what its
record says and its accuracy has been measured again.

Shapes: N items, B batch, C channels, H height, W width, K classes, D features.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from worker.contract import JudgePolicy, JudgeRecord
from worker.engine.data import Dataset
from worker.engine.errors import JudgeUnfit, is_out_of_memory
from worker.engine.files import write_atomically, write_document
from worker.engine.judge_networks import FEATURES as FEATURES
from worker.engine.judge_networks import FIRST, Seat
from worker.engine.region import Region

BATCH = 64
SIDES = (8, 64)
ACCURACY_SLACK = 0.005
"""How far a cached judge may fall below its recorded accuracy: rounding on another machine may flip a borderline image."""


@dataclass(frozen=True)
class Judged:
    """What the judge says of N images, on the CPU."""

    probabilities_NK: Tensor
    """float64, rows sum to 1."""
    features_ND: Tensor
    """float64."""

    @property
    def predicted_N(self) -> Tensor:
        """int64 class indices; the lowest index wins a tie."""
        return self.probabilities_NK.argmax(dim=1)


class Judge:
    """A trained network with its record."""

    def __init__(self, network: nn.Module, record: JudgeRecord, device: torch.device, region: Region | None = None) -> None:
        self.network = network
        self.record = record
        self.device = device
        self.region = region

    def look(self, images_NCHW: Tensor, hidden_Nhw: Tensor | None = None) -> Judged:
        """Judge uint8 images (N, C, H, W).

        Args:
            hidden_Nhw: bool over cells, for a judge of a region: it sees what is hidden and nothing else.

        Raises:
            JudgeUnfit: its answer is not finite.
        """
        return _look(self.network, images_NCHW, self.device, self.region, hidden_Nhw)


@torch.inference_mode()
def _look(
    network: nn.Module,
    images_NCHW: Tensor,
    device: torch.device,
    region: Region | None = None,
    hidden_Nhw: Tensor | None = None,
) -> Judged:
    # One fixed batch size: a batch's shape may pick another kernel, and features would then depend on who else was asked.
    network.eval()
    probabilities, features = [], []
    for rows in torch.arange(len(images_NCHW)).split(256):
        x_BCHW = _scaled(images_NCHW[rows], device)
        if region is not None:
            assert hidden_Nhw is not None
            x_BCHW = region.seen(x_BCHW, hidden_Nhw[rows].to(device))
        logits_BK, features_BD = network(x_BCHW)
        probabilities.append(logits_BK.double().softmax(dim=1).cpu())
        features.append(features_BD.double().cpu())
    judged = Judged(torch.cat(probabilities), torch.cat(features))
    if not (judged.probabilities_NK.isfinite().all() and judged.features_ND.isfinite().all()):
        raise JudgeUnfit("expected finite answers from the judge, got NaN or infinity")
    return judged


def _scaled(images_BCHW: Tensor, device: torch.device) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1]: one fixed scale for every image, never a stretch of its own."""
    return images_BCHW.to(device).float() / 127.5 - 1


def _shifted(x_BCHW: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Every image moved by its own whole-pixel offset of at most `reach`; the border is repeated."""
    batch, _, height, width = x_BCHW.shape
    padded = F.pad(x_BCHW, (reach, reach, reach, reach), mode="replicate")
    offsets_2B = torch.randint(0, 2 * reach + 1, (2, batch), generator=generator).to(x_BCHW.device)
    rows_BH = offsets_2B[0, :, None] + torch.arange(height, device=x_BCHW.device)
    columns_BW = offsets_2B[1, :, None] + torch.arange(width, device=x_BCHW.device)
    items_B = torch.arange(batch, device=x_BCHW.device)
    moved_BHWC = padded[items_B[:, None, None], :, rows_BH[:, :, None], columns_BW[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


def train(
    dataset: Dataset, policy: JudgePolicy, device: torch.device, region: Region | None = None, seat: Seat = FIRST
) -> nn.Module:
    """Train a judge on the training split alone. The same data, policy and machine give the same weights on a CPU.

    Args:
        region: show it this part of the images, hidden anew each time, and no other.
    """
    chosen_N = dataset.train_of(range(len(dataset.class_names)))
    images_NCHW, labels_N = dataset.images_NCHW[chosen_N], dataset.labels_N[chosen_N]
    network = _fresh(dataset, policy, region, seat).to(device).train()
    generator = torch.Generator().manual_seed(seat.seed(policy.seed))
    steps = policy.epochs * math.ceil(len(labels_N) / BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=seat.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=seat.learning_rate, total_steps=steps)
    reach = max(1, min(images_NCHW.shape[-2:]) // 16)
    for _ in range(policy.epochs):
        for items_B in torch.randperm(len(labels_N), generator=generator).split(BATCH):
            x_BCHW = _shifted(_scaled(images_NCHW[items_B], device), reach, generator)
            if region is not None:
                x_BCHW = region.seen(x_BCHW, region.drawn(len(items_B), dataset.image_shape, generator).to(device))
            logits_BK, _ = network(x_BCHW)
            loss = F.cross_entropy(logits_BK, labels_N[items_B].to(device), label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _fresh(dataset: Dataset, policy: JudgePolicy, region: Region | None, seat: Seat) -> nn.Module:
    channels, height, width = dataset.image_shape
    if channels not in (1, 3):
        raise JudgeUnfit(f"expected images of 1 or 3 channels, got {channels}x{height}x{width}")
    if region is not None:
        channels, height, width = region.seen_shape(dataset.image_shape)
    elif not all(SIDES[0] <= side <= SIDES[1] for side in (height, width)):
        raise JudgeUnfit(f"expected 1 or 3 channels and sides of {SIDES[0]}-{SIDES[1]}, got {channels}x{height}x{width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seat.seed(policy.seed))
        return seat.build(channels, height, width, len(dataset.class_names))


def accuracy(network: nn.Module, dataset: Dataset, device: torch.device, region: Region | None = None) -> tuple[float, int]:
    """Share of held-out real images judged right, and how many there are; of a region, each under a mask of its own.

    Raises:
        JudgeUnfit: a class has no held-out image, so nothing shows that the judge knows it.
    """
    every = range(len(dataset.class_names))
    for k in every:
        if len(dataset.held_out_of([k])) == 0:
            raise JudgeUnfit(f"expected held-out images of every class, got none of {dataset.class_names[k]!r}")
    chosen_N = dataset.held_out_of(every)
    ids = [dataset.ids[i] for i in chosen_N.tolist()]
    hidden_Nhw = region.of_ids(ids, dataset.image_shape) if region is not None else None
    predicted_N = _look(network, dataset.images_NCHW[chosen_N], device, region, hidden_Nhw).predicted_N
    right = int((predicted_N == dataset.labels_N[chosen_N]).sum())
    return right / len(chosen_N), len(chosen_N)


# ------------------------------------------------------------------------------------------------------------ the cache


def recipe_of(region: Region | None, seat: Seat = FIRST) -> str:
    """The name of a judge, as its record has it."""
    return seat.recipe if region is None else f"{seat.recipe} of {region.name}"


def cache_key(
    dataset: Dataset, dataset_digest: str, policy: JudgePolicy, region: Region | None = None, seat: Seat = FIRST
) -> str:
    """SHA-256 of everything that decides the judge's weights: recipe, policy, data, their order, and who is held out."""
    ingredients = {
        "recipe": recipe_of(region, seat),
        "policy": policy.model_dump(mode="json", exclude={"judges", "slack"}),  # of these it learns nothing
        "dataset": dataset_digest,
        "held_out": sorted(i for i, held in zip(dataset.ids, dataset.held_out_N.tolist(), strict=True) if held),
        "shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        **({} if region is None else {"region": region.ingredients}),
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def obtain(
    dataset: Dataset,
    dataset_digest: str,
    policy: JudgePolicy,
    judges: Path,
    device: torch.device,
    region: Region | None = None,
    seat: Seat = FIRST,
) -> tuple[Judge, str]:
    """The judge for a dataset: the cached one if it proves itself, else a freshly trained one, which is then cached.

    Args:
        dataset_digest: digest of the registered data, as in the spec.
        judges: folder of cached judges, one sub-folder per cache key.
        region: the part of an image that it judges; None: all of it.
        seat: its architecture and its seed; every seat has judges of its own.

    Returns:
        The judge and one sentence about where it came from.

    Raises:
        JudgeUnfit: its held-out accuracy is below `policy.min_accuracy`, or cannot be measured.
    """
    key = cache_key(dataset, dataset_digest, policy, region, seat)
    try:
        network, record = _load(judges / key, key, dataset, policy, device, region, seat)
        origin = "cached judge, digest and accuracy checked again"
    except _Refused as refusal:
        network = train(dataset, policy, device, region, seat)
        measured, n = accuracy(network, dataset, device, region)
        weights = safetensors.torch.save(_on_cpu(network))
        record = JudgeRecord(
            name=recipe_of(region, seat),
            sha256=hashlib.sha256(weights).hexdigest(),
            cache_key=key,
            held_out_accuracy=measured,
            held_out_n=n,
        )
        _save(judges / key, weights, record)
        origin = f"trained: {refusal}"
    if record.held_out_accuracy < policy.min_accuracy:
        raise JudgeUnfit(
            f"expected a judge ({record.name}) that is right on at least {policy.min_accuracy:.1%} of held-out real "
            f"{'images' if region is None else f'images, hidden by {region.name},'} "
            f"got {record.held_out_accuracy:.1%} of {record.held_out_n}"
        )
    return Judge(network, record, device, region), origin


class _Refused(Exception):
    """There is no cached judge, or the cached one does not prove itself; train a fresh one."""


def _load(
    folder: Path,
    key: str,
    dataset: Dataset,
    policy: JudgePolicy,
    device: torch.device,
    region: Region | None,
    seat: Seat,
) -> tuple[nn.Module, JudgeRecord]:
    try:
        record = JudgeRecord.model_validate_json((folder / "judge.json").read_bytes())
        weights = (folder / "judge.safetensors").read_bytes()
    except FileNotFoundError as absent:
        raise _Refused("none was cached") from absent
    except ValueError as malformed:
        raise _Refused("the cached record is malformed") from malformed
    if (record.cache_key, record.name) != (key, recipe_of(region, seat)) or hashlib.sha256(
        weights
    ).hexdigest() != record.sha256:
        raise _Refused("the cached judge does not match its record")
    network = _fresh(dataset, policy, region, seat).to(device).eval()
    try:
        network.load_state_dict(safetensors.torch.load(weights))
        measured, n = accuracy(network, dataset, device, region)
    except (SafetensorError, RuntimeError, JudgeUnfit) as unusable:
        if is_out_of_memory(unusable):
            raise
        raise _Refused("the cached weights do not load into a judge of finite answers") from unusable
    if n != record.held_out_n or measured < record.held_out_accuracy - ACCURACY_SLACK:
        raise _Refused(f"the cached judge is right on {measured:.1%}, its record says {record.held_out_accuracy:.1%}")
    return network, record.model_copy(update={"held_out_accuracy": measured})


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def _save(folder: Path, weights: bytes, record: JudgeRecord) -> None:
    """Weights first, record last, each by rename: a judge without a record is no judge."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "judge.safetensors", weights)
    write_document(folder / "judge.json", record)
