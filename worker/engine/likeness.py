"""Completed images beside what was hidden of them: does the judge see the class there, and how near does the model come?

Shape suffixes: N images of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.contract import Finding, MaskSpec
from worker.engine import image_quality
from worker.engine.verifier import Env, Subject


@dataclass(frozen=True)
class Likeness:
    """How completions of one class's images compare with the truth; every row is an image, all on the CPU."""

    right_N: Tensor
    """bool: the judge takes the completed region for one of the class."""
    distance_N: Tensor
    """float64: between the judge's features of the completed region and of the true one, Euclidean."""
    cosine_N: Tensor
    """float64: of those features."""
    psnr_N: Tensor
    """float64 dB; see `image_quality`."""
    ssim_N: Tensor
    """float64."""


def likeness(env: Env, subject: Subject, corruption: MaskSpec, k: int, n: int, *, prompted: bool) -> Likeness:
    """A subject's completions of the first n images of a class.

    Raises:
        SamplingFailed, JudgeUnfit: see `Env.completions` and `Env.region_judge`.
    """
    completed_NCHW = env.completions(subject, corruption, k, n, prompted=prompted)
    truth_NCHW = env.dataset.images_NCHW[env.shown(k, n)]
    hidden_Nhw, covered_N1HW = env.hidden(corruption, k, n), env.covered(corruption, k, n)
    judge = env.region_judge(corruption)
    came, due = (judge.look(images_NCHW, hidden_Nhw) for images_NCHW in (completed_NCHW, truth_NCHW))
    return Likeness(
        right_N=came.predicted_N == k,
        distance_N=(came.features_ND - due.features_ND).norm(dim=1),
        cosine_N=F.cosine_similarity(came.features_ND, due.features_ND, dim=1),
        psnr_N=image_quality.psnr(completed_NCHW, truth_NCHW, covered_N1HW),
        ssim_N=image_quality.ssim(completed_NCHW, truth_NCHW, covered_N1HW),
    )


MEASURES: Mapping[str, tuple[str, Callable[[Likeness], Tensor]]] = {
    "judge_feature_distance": ("distance of the judge's features from the true region's", lambda seen: seen.distance_N),
    "judge_feature_cosine": ("cosine of the judge's features with the true region's", lambda seen: seen.cosine_N),
    "psnr": ("PSNR of the hidden pixels in dB", lambda seen: seen.psnr_N),
    "ssim": ("SSIM at the hidden pixels", lambda seen: seen.ssim_N),
}
"""What is reported: metric -> what it is, and its rows."""


def reported(check: str, subject: Subject, corruption: MaskSpec, by_class: Sequence[Likeness], *, which: str) -> list[Finding]:
    """Means over the images of some classes, for people to read; every class has the same weight.

    Args:
        which: the images, in the plural.
    """
    n = sum(len(seen.right_N) for seen in by_class)
    return [
        Finding(
            check=check,
            metric=metric,
            subject=subject,
            gating=False,
            value=float(torch.stack([rows(seen).mean() for seen in by_class]).mean()),
            n=n,
            corruption=corruption,
            detail=f"{what}, on average over {which}",
        )
        for metric, (what, rows) in MEASURES.items()
    ]


def suffix(prompted: bool) -> str:
    """Of metrics of completions that were asked for with the class's prompt beside the visible part."""
    return "_prompted" if prompted else ""
