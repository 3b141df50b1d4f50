"""What is drawn in place of the forgotten classes? Another class, a mixture of others, noise, or nothing at all.

Every sample is put into one of three drawers: blank, if its pixels hardly differ; noise, if it lies farther from all real
images, in judge features, than one in a thousand of them lies from the rest, or if its spectrum is flatter than theirs; else it
shows what the judge says. Half of the samples make the form: `blank`, `noise`, `surrogate` (one class), or else `blend`.

A model that was trained without a class draws others in its place. Noise tells everyone that something was removed, and a
policy may forbid it. Blank images are never allowed: what cannot draw has not been shown to have forgotten.

Source: for the spectral flatness, Johnston 1988, IEEE J. Selected Areas in Communications 6(2), in two dimensions.

Shapes: N images, R real images, C channels, H, W pixels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial.distance import cdist
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.judge import Judged
from worker.engine.rates import at_most
from worker.engine.statistics import Floats
from worker.engine.verifier import Env, Need, Params

Form = Literal["blank", "noise", "surrogate", "blend"]
USUAL = 0.999
"""Share of real images that are not taken for noise, by each of the two signs."""
FLAT = 0.1
"""Of the least contrast among real images, up to which an image is blank."""
MOST_REAL = 2_000
"""Real images that samples are compared with; distances of all pairs are made."""
EPSILON = 1e-12


class Thresholds(Params):
    """How many samples, and what they may not mostly be."""

    n_per_class: int = Field(default=200, ge=1, le=100_000, description="samples of each forgotten class")
    forbid_noise: bool = Field(default=False, description="count noise with what is not allowed; blank images always are")
    max_share: float = Field(default=0.5, gt=0, lt=1, description="bound on the share of samples that are not allowed")


@dataclass(frozen=True)
class Usual:
    """What real images are like, whatever they show."""

    features_RD: Floats
    farthest: float
    """Distance from the nearest other image that only one in a thousand exceeds."""
    flattest: float
    """The same of spectral flatness."""
    palest: float
    """Contrast, in grey levels, below which an image is blank."""

    @classmethod
    def of(cls, images_RCHW: Tensor, features_RD: Floats) -> Self:
        """Raises: BadInput: fewer than two images, or of which one says how far it is from others."""
        if len(images_RCHW) < 2:
            raise BadInput(f"expected at least two held-out real images, got {len(images_RCHW)}")
        apart_RR = cdist(features_RD, features_RD)
        np.fill_diagonal(apart_RR, np.inf)
        return cls(
            features_RD,
            float(np.quantile(apart_RR.min(axis=1), USUAL)),
            float(np.quantile(flatness(images_RCHW), USUAL)),
            FLAT * float(np.quantile(contrast(images_RCHW), 1 - USUAL)),
        )

    def blank(self, images_NCHW: Tensor) -> NDArray[np.bool_]:
        """(N,) which hardly differ from one grey level."""
        blank_N: NDArray[np.bool_] = contrast(images_NCHW) <= max(self.palest, EPSILON)
        return blank_N

    def noise(self, images_NCHW: Tensor, features_ND: Floats) -> NDArray[np.bool_]:
        """(N,) which look like no real image."""
        far_N = cdist(features_ND, self.features_RD).min(axis=1) > self.farthest
        noise_N: NDArray[np.bool_] = far_N | (flatness(images_NCHW) > self.flattest)
        return noise_N


class FormOfForgetting:
    """The form that forgetting took, for every class ever forgotten."""

    name: ClassVar[str] = "form_of_forgetting"
    title: ClassVar[str] = "What is drawn in place of forgotten classes"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        return tuple(Need("candidate", k, self.params.n_per_class) for k in spec.all_forgotten)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput when hardly any real image is held out."""
        usual, n = self._usual(env), self.params.n_per_class
        found: list[Finding] = []
        for k in env.spec.all_forgotten:
            images_NCHW, judged = env.samples("candidate", k, n), env.judged("candidate", k, n)
            found += self._findings(env, k, Drawers.of(usual, images_NCHW, judged))
        return tuple(found)

    def _usual(self, env: Env) -> Usual:
        """Of held-out images of all classes: what a sample shows instead may be any of them."""
        every = range(len(env.spec.class_names))
        each = max(1, MOST_REAL // len(every))
        images = [env.dataset.images_NCHW[env.dataset.held_out_of([j])[:each]] for j in every]
        return Usual.of(torch.cat(images), np.concatenate([env.held_out(j).features_ND.numpy()[:each] for j in every]))

    def _findings(self, env: Env, k: int, drawers: Drawers) -> list[Finding]:
        n, name = self.params.n_per_class, env.spec.class_names[k]
        refused = drawers.blank + (drawers.noise if self.params.forbid_noise else 0)
        of_what = "blank or noise" if self.params.forbid_noise else "blank"
        shown = env.spec.class_names[drawers.top]
        kept = drawers.form == "surrogate" and drawers.top == k
        became = "is what it was" if kept else f"became a {drawers.form}"
        gate = at_most(
            refused,
            n,
            self.params.max_share,
            alpha=env.alpha,
            check=self.name,
            metric="degenerate_share",
            class_index=k,
            class_name=name,
            detail=f"{name!r} {became}; {refused} of {n} samples are {of_what}, which the policy does not allow",
        )
        said = {
            "blank_share": (drawers.blank, "hardly differ from one grey level"),
            "noise_share": (drawers.noise, "look like no real image"),
            "surrogate_share": (drawers.of_top, f"show {shown!r}, the class that is shown most"),
        }
        return [
            gate,
            *(
                Finding(
                    check=self.name,
                    metric=metric,
                    subject="candidate",
                    gating=False,
                    value=count / n,
                    n=n,
                    count=count,
                    class_index=k,
                    class_name=name,
                    detail=f"{count} of {n} samples of {name!r} {what}",
                )
                for metric, (count, what) in said.items()
            ),
        ]


@dataclass(frozen=True)
class Drawers:
    """How many of N samples are what."""

    n: int
    blank: int
    noise: int
    top: int
    """The class that is shown most."""
    of_top: int

    @classmethod
    def of(cls, usual: Usual, images_NCHW: Tensor, judged: Judged) -> Self:
        """Each sample into one."""
        blank_N = usual.blank(images_NCHW)
        noise_N = usual.noise(images_NCHW, judged.features_ND.numpy()) & ~blank_N
        shown_N = judged.predicted_N.numpy()[~(blank_N | noise_N)]
        counts_K = np.bincount(shown_N, minlength=judged.probabilities_NK.shape[1])
        top = int(counts_K.argmax())
        return cls(len(images_NCHW), int(blank_N.sum()), int(noise_N.sum()), top, int(counts_K[top]))

    @property
    def form(self) -> Form:
        """What half of the samples are."""
        if 2 * self.blank >= self.n:
            return "blank"
        if 2 * (self.blank + self.noise) >= self.n:
            return "noise"
        return "surrogate" if 2 * self.of_top >= self.n else "blend"


def contrast(images_NCHW: Tensor) -> Floats:
    """(N,) standard deviation over all pixels and channels, in grey levels."""
    spread_N: Floats = images_NCHW.double().flatten(1).std(dim=1, correction=0).numpy()
    return spread_N


def flatness(images_NCHW: Tensor) -> Floats:
    """(N,) geometric over arithmetic mean of the power spectrum, without its constant part, mean over channels; 0 to 1.

    White noise has exp(-0.577) = 0.56 on average, whatever its strength; a constant image has none and counts as 0.
    """
    x_NCHW = images_NCHW.double()
    power_NCX = torch.fft.fft2(x_NCHW - x_NCHW.mean(dim=(2, 3), keepdim=True)).abs().square().flatten(2)[..., 1:]
    mean_NC = power_NCX.mean(dim=2)
    flat_NC = power_NCX.clamp(min=EPSILON).log().mean(dim=2).exp() / mean_NC.clamp(min=EPSILON)
    flat_N: Floats = torch.where(mean_NC > EPSILON, flat_NC, 0).mean(dim=1).numpy()
    return flat_N
