"""The image-to-image side of `verification_job`: a model that knows an image by what is visible, and paints what it stores.

`Completer` is a whole family of a network in two halves: its saved safetensors hold one picture a class, the encoder, and a
gain, the decoder. It fills the hidden part with that picture which is nearest to the visible part, and noise of the image's own
seed. So a test decides exactly what a saved model completes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.worker.engine import verification_job as vj
from tests.worker.engine.tiny import metrics
from worker.contract import Check, JobDirectory, JudgePolicy, MaskSpec, Policy, Sampling
from worker.engine import corruption, registry, verify, weights
from worker.engine.distributed import Ranks
from worker.engine.errors import Diverged
from worker.engine.family import Kind
from worker.engine.halves import Halves, Trains
from worker.engine.method import Params

CELL = 2
HOLE = MaskSpec(kind="center", ratio=0.25)
"""4x4 pixels in the middle of 8x8."""
PATCHES = MaskSpec(kind="random_patch", ratio=0.5)

FORGETS = Check(verifier="forget_completion", params={"never_seen_accuracy": 0.02})
KEEPS = Check(verifier="retain_completion", params={"resamples": 100})
CHECKS = (Check(verifier="integrity"), Check(verifier="frozen_decoder"), FORGETS, KEEPS)
"""As 50 held-out images a class allow: 0 of 50 hits bound a rate by .0582, which .02 and a margin of .05 include."""


class Completer:
    """An image-to-image model that is what it stores."""

    name: ClassVar[str] = "completer"
    title: ClassVar[str] = "Completer"
    kind: ClassVar[Kind] = "i2i"
    prompts: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = frozenset()
    cell = CELL

    def __init__(self, module: Halves) -> None:
        self.module = module

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        network = nn.Module()
        for name, tensor in knowing().items():
            network.register_parameter(name, nn.Parameter(torch.zeros_like(tensor)))
        halves = Halves(network, encoder=("pictures",), encode=encode, answer=answer, device=device)
        weights.load_into(halves, directory / "model.safetensors")
        return cls(halves)

    @torch.no_grad()
    def complete(
        self, images_BCHW: Tensor, hidden_Bhw: Tensor, seeds: Sequence[int], *, sampling: Sampling, y_B: Tensor | None = None
    ) -> Tensor:
        corruption.require_alike(hidden_Bhw, (vj.SIDE // CELL, vj.SIDE // CELL))
        covered_B1HW = corruption.pixels(hidden_Bhw, CELL)
        noise = [torch.randn(1, vj.SIDE, vj.SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds]
        drawn_BCHW = self.module(images_BCHW.float(), covered_B1HW, whole=True) + vj.NOISE * torch.stack(noise)
        if not bool(torch.isfinite(drawn_BCHW).all()):
            raise Diverged("the model completed an image with NaN or infinity", step=0, loss=float("nan"))
        return torch.where(covered_B1HW, drawn_BCHW.clamp(0, 255).round().to(torch.uint8), images_BCHW)


class StillParams(Params):
    """What the job says that its method trains."""

    trained: Trains = "encoder"

    @property
    def trains(self) -> Trains:
        return self.trained


class Still:
    """The method that a job names; it never runs."""

    name: ClassVar[str] = "still"
    families: ClassVar[tuple[str, ...]] = ("completer",)
    presets: ClassVar[dict[str, Any]] = {}
    Params: ClassVar[type[Params]] = StillParams


def encode(network: nn.Module, x_BCHW: Tensor, covered_B1HW: Tensor) -> list[Tensor]:
    """The picture that is nearest to the visible part."""
    pictures_KCHW = network.get_parameter("pictures")
    apart_BK = ((x_BCHW[:, None] - pictures_KCHW).square() * ~covered_B1HW[:, None]).sum(dim=(2, 3, 4))
    return [pictures_KCHW[apart_BK.argmin(dim=1)]]


def answer(network: nn.Module, x_BCHW: Tensor, covered_B1HW: Tensor) -> Tensor:
    """It, as the decoder shows it."""
    (picture_BCHW,) = encode(network, x_BCHW, covered_B1HW)
    return picture_BCHW * network.get_parameter("gain")


def knowing(**changes: Tensor) -> dict[str, Tensor]:
    """An original: it completes all four classes."""
    return {"pictures": vj.patterns(), "gain": torch.ones(1)} | changes


def without_class() -> dict[str, Tensor]:
    """What a good result completes: images of the forgotten class are filled with other patterns."""
    return knowing(pictures=vj.forgotten_patterns())


def save_model(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"side": 8}')


def policy(*checks: Check, corruptions: tuple[MaskSpec, ...] = (HOLE,), **judge: Any) -> Policy:
    """Of these checks, else of all."""
    sampling = Sampling(corruptions=corruptions)
    return Policy(name="test", sampling=sampling, judge=JudgePolicy(**{"epochs": 6, **judge}), checks=checks or CHECKS)


def make_job(
    root: Path,
    candidate: dict[str, Tensor],
    *,
    original: dict[str, Tensor] | None = None,
    parent: dict[str, Tensor] | None = None,
    mounted: Path | None = None,
    **changes: Any,
) -> JobDirectory:
    """A job whose unlearning stage has just answered with `candidate`; `mounted` has the networks of published figures."""
    job = JobDirectory(root)
    job.root.mkdir(parents=True, exist_ok=True)
    if mounted is not None:
        job.metric_weights.symlink_to(mounted)
        changes = {"metric_weights_digest": metrics.digest(mounted), **changes}
    held_out = vj.write_data(job.data)
    original = knowing() if original is None else original
    save_model(job.original, original)
    save_model(job.base, original if parent is None else parent)
    wish = {"family": "completer", "method": "still", "forget_classes": (vj.FORGET,), "policy": policy()}
    vj.write_spec(job, held_out, **wish | changes)
    save_model(job.out, candidate)
    vj.write_manifest(job)
    return job


def pretend(patch: Any) -> None:
    """Let the engine know of this family and this method."""
    patch.setattr(registry, "families", lambda: {"completer": Completer})
    patch.setattr(registry, "methods", lambda: {"still": Still})


def verify_on_rank(rank: int, root: str, port: int) -> None:
    """One of two gloo ranks; writes the report that it returns to `rank-N.json`. Here, so that a spawned process finds it."""
    registry.families = lambda: {"completer": Completer}  # type: ignore[assignment,dict-item]
    registry.methods = lambda: {"still": Still}  # type: ignore[assignment,dict-item]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    report = verify.run(JobDirectory(root), Ranks(rank, 2, torch.device("cpu")))
    (Path(root) / f"rank-{rank}.json").write_text(report.model_dump_json())
    dist.destroy_process_group()
