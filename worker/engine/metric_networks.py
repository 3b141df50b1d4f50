"""The networks of published figures, FID, KID, IS and CLIP similarity: the operator mounts them, nothing is ever downloaded.

    metric_weights/inception.pt    TorchScript, x (B, 3, 299, 299) in [0, 255]:
                                   f(x, return_features=True) -> (B, D); f(x, no_output_bias=True) -> (B, K), rows sum to 1
    metric_weights/clip/           a `CLIPModel` as transformers saves it, in safetensors, and its image processor

`inception-2015-12-05.pt`, which clean-fid uses, is such a file as it is. A network answers in float32, a fixed number of images
at a time, so that an image's features depend on no other image; what is computed of them is in float64.

Shape suffixes: B images of a call, N all images, C channels, H, W pixels, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from worker.contract import Finding, tree_digest
from worker.engine.errors import BadInput, BadModel, is_out_of_memory
from worker.engine.files import entries, sha256_of

Name = Literal["inception", "clip"]
FOLDERS: dict[Name, str] = {"inception": "inception.pt", "clip": "clip"}
"""Where each lies in the mounted folder."""
SIDE = 299
AT_A_TIME = 32

Busy = Callable[[], None]
"""Called between batches: the sign of life of a stage that may take hours on a CPU."""


def mounted(folder: Path) -> tuple[Name, ...]:
    """Those that lie in the folder."""
    return tuple(name for name, path in FOLDERS.items() if (folder / path).exists())


class Inception:
    """Features and class probabilities of whole images, resized as clean-fid does: bicubic with antialiasing, not rounded."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raises: BadModel when the file is not TorchScript."""
        path = folder / FOLDERS["inception"]
        self._device = device
        self.sha256 = sha256_of(path)
        try:
            self._network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise BadModel(f"expected a TorchScript module in {path.name}, found something else") from error

    @property
    def protocol_id(self) -> str:
        """How images are looked at: see `resized`, and by which file."""
        return f"{SIDE}-bicubic-antialias/inception={self.sha256}"

    def look(self, images_NCHW: Tensor, busy: Busy) -> tuple[Tensor, Tensor]:
        """float64 features (N, D) and probabilities (N, K) on the CPU.

        Args:
            images_NCHW: uint8, grey or RGB.

        Raises:
            BadModel: the network answers with other shapes than a `(B, D)` and a `(B, K)`, or not with finite probabilities.
            BadInput: images of another number of channels.
        """
        features_ND, probabilities_NK = self._answers(images_NCHW, busy, {"return_features": True}, {"no_output_bias": True})
        total_N = probabilities_NK.sum(dim=1)
        if not (probabilities_NK.ge(0).all() and torch.allclose(total_N, torch.ones_like(total_N), atol=1e-3)):
            raise BadModel(f"expected probabilities of {FOLDERS['inception']} that sum to 1, got others")
        return features_ND, probabilities_NK / total_N[:, None]

    def features(self, images_NCHW: Tensor, busy: Busy) -> Tensor:
        """float64 features (N, D) alone. Raises: as `look`."""
        return self._answers(images_NCHW, busy, {"return_features": True})[0]

    def _answers(self, images_NCHW: Tensor, busy: Busy, *hows: Mapping[str, bool]) -> list[Tensor]:
        """One answer a way of asking; each image is resized once."""
        found = []
        for images_BCHW in _parts(images_NCHW):
            x_BCHW = resized(images_BCHW.to(self._device))
            found.append([self._asked(x_BCHW, **how) for how in hows])
            busy()
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    @torch.no_grad()
    def _asked(self, x_BCHW: Tensor, **how: bool) -> Tensor:
        # Unoptimised: the profiling executor would answer its first calls by other kernels than the later ones.
        with torch.jit.optimized_execution(False), torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            try:
                answer = self._network(x_BCHW, **how)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise BadModel(
                    f"expected {FOLDERS['inception']} to take {list(x_BCHW.shape)} and {how}, it does not"
                ) from error
        return _rows(answer, len(x_BCHW), FOLDERS["inception"])


class Clip:
    """Embeddings of whole images, prepared as the model's own image processor says."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raises: BadModel when the folder is not a complete `CLIPModel` in safetensors with its image processor."""
        path = folder / FOLDERS["clip"]
        self._device = device
        self.sha256 = tree_digest(entries(path))
        try:
            # Pillow's resize, whether torchvision is there or not: the other backend gives other numbers.
            self._processor = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True, backend="pil")
            model, report = transformers.CLIPModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise BadModel(
                f"expected a CLIPModel in safetensors and its image processor in {path.name}/, found none"
            ) from error
        # What is missing would be left at random values.
        if wrong := sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]})):
            raise BadModel(
                f"expected all weights of a CLIPModel in {path.name}/, found none or others of {', '.join(wrong[:3])}"
            )
        self._model = model.to(device).eval()

    @property
    def protocol_id(self) -> str:
        """How images are looked at: as the image processor of these files prepares them."""
        return f"transformers-{transformers.__version__}/clip={self.sha256}"

    @torch.no_grad()
    def look(self, images_NCHW: Tensor, busy: Busy) -> Tensor:
        """float64 (N, D) embeddings of length 1 on the CPU.

        Args:
            images_NCHW: uint8, grey or RGB.

        Raises:
            BadModel: an embedding is not finite.
            BadInput: images of another number of channels.
        """
        found = []
        for images_BCHW in _parts(images_NCHW):
            pictures = list(images_BCHW.permute(0, 2, 3, 1).numpy())
            x_BCHW = self._processor(images=pictures, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
            with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
                answer: Any = self._model.get_image_features(pixel_values=x_BCHW.to(self._device))
            found.append(F.normalize(_rows(answer.pooler_output, len(pictures), FOLDERS["clip"]), dim=1))
            busy()
        return torch.cat(found)


def figures_measured(check: str, found: Sequence[Finding]) -> Finding:
    """What a policy that sets no threshold asks for: that every figure, each a finding of its own, is there."""
    figures = [f for f in found if not f.gating]
    finite = sum(f.value is not None and math.isfinite(f.value) for f in figures)
    return Finding(
        check=check,
        metric="figures_measured",
        subject="candidate",
        gating=True,
        passed=finite == len(figures),
        value=finite,
        comparator="eq",
        threshold=len(figures),
        n=len(figures),
        count=finite,
        detail=f"{finite} of {len(figures)} figures of mounted networks were measured; they are findings of their own",
    )


def resized(images_BCHW: Tensor) -> Tensor:
    """float32 (B, 3, 299, 299) in [0, 255]; bicubic (a = -1/2) with antialiasing, as Pillow resizes floats.

    Source: Parmar, Zhang & Zhu 2022, "On Aliased Resizing", arXiv:2104.11222. What overshoots is cut off at 0 and 255.
    """
    return F.interpolate(images_BCHW.float(), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)


def _parts(images_NCHW: Tensor) -> Iterator[Tensor]:
    """uint8 (B, 3, H, W) at a time; a grey image has three equal channels."""
    if images_NCHW.shape[1] not in (1, 3):
        raise BadInput(f"expected images of 1 or 3 channels, got {images_NCHW.shape[1]}")
    for images_BCHW in images_NCHW.split(AT_A_TIME):
        yield images_BCHW.expand(-1, 3, -1, -1)


def _rows(answer: object, count: int, where: str) -> Tensor:
    """float64 (count, D) on the CPU."""
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != count:
        came = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise BadModel(f"expected {count} rows from {where}, got {came}")
    if not bool(answer.isfinite().all()):
        raise BadModel(f"expected finite numbers from {where}, got NaN or infinity")
    return answer.double().cpu()
