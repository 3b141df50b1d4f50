"""A label-conditional diffusion family as methods and checks ask it: its losses, and labels that it was not trained with.

Shape suffixes: B images, C channels, H, W pixels or latent cells; K labels, M more of them, X what the network is told of one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from worker.contract import Sampling
from worker.engine.diffusion import Ask, Denoiser
from worker.engine.errors import BadInput
from worker.engine.family import Draw


class Denoising:
    """The losses of a family whose network is a `Denoiser`'s; see `Family` and `Generator` for what each answers."""

    denoiser: Denoiser
    module: nn.Module
    table: ClassVar[str]
    """Name of the parameter of the module that has a row a label, the null label's last."""

    @property
    def timesteps(self) -> int:
        """See `Generator.timesteps`."""
        return len(self.denoiser.abar_T)

    def begins_at(self, depth: float, sampling: Sampling) -> float:
        """See `Generator.begins_at`."""
        return self.denoiser.begins_at(depth, sampling)

    @property
    def null_label(self) -> int | None:
        """See `Generator.null_label`."""
        return self.denoiser.null_label

    @property
    def label_count(self) -> int:
        """See `Generator.label_count`."""
        return self.denoiser.labels + (self.denoiser.null_label is not None) + self.denoiser.more_labels

    def conditioning(self, y_B: Tensor) -> Tensor:
        """See `Generator.conditioning`."""
        return self.module.get_parameter(self.table).detach()[y_B.to(self.denoiser.device)]

    @torch.no_grad()
    def unname(self, labels: Sequence[int]) -> None:
        """See `Generator.unname`.

        The row of a label that was never trained is as it was drawn, and guidance carries what it happens to mean far: one of
        six such networks drew what it had never seen in 14 % of its images at guidance 7.5.
        """
        if self.null_label is not None:
            table_KX = self.module.get_parameter(self.table)
            table_KX[list(labels)] = table_KX[self.null_label].clone()

    def with_labels(self, rows_MX: Tensor) -> Self:
        """See `Generator.with_labels`. Raises: BadInput for a model that has some already."""
        if self.denoiser.more_labels:
            raise BadInput("expected a model without labels of others', found one that has some")
        ask, rows_MX = self.denoiser.ask, rows_MX.to(self.denoiser.device)

        def asked(module: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
            table_KX = torch.cat([module.get_parameter(self.table), rows_MX])
            return ask(_Told(module, {self.table: table_KX}), noisy_BCHW, t_B, y_B)

        return self._asking(asked, len(rows_MX))

    def _asking(self, asked: Ask, more_labels: int) -> Self:
        other = copy.copy(self)
        other.denoiser = replace(self.denoiser, ask=asked, more_labels=more_labels)
        return other

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """See `Family.loss`."""
        return self.denoiser.loss(x_BCHW, y_B, draw, module=module)

    def contrast(
        self, x_BCHW: Tensor, y_B: Tensor, anchor_B: Tensor, draw: Draw, *, module: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Labelled.contrast`: towards the answer under the anchor's label or prompt."""
        return self.denoiser.contrast(x_BCHW, y_B, anchor_B, draw, module=module)

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, temperature: float = 1.0,
        module: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Family.distance`; a temperature means nothing here."""
        return self.denoiser.distance(x_BCHW, y_B, draw, teacher=teacher, module=module)

    def negated(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, eta: float, module: nn.Module | None = None
    ) -> Tensor:
        """See `Generator.negated`."""
        return self.denoiser.negated(x_BCHW, y_B, draw, teacher=teacher, eta=eta, module=module)

    def denoised(self, y_B: Tensor, draw: Draw, *, guidance_scale: float, steps: int) -> tuple[Tensor, Draw]:
        """See `Generator.denoised`."""
        return self.denoiser.denoised(y_B, draw, guidance_scale=guidance_scale, steps=steps)


class _Told(nn.Module):
    """A network that is called with other values in place of some of its parameters."""

    def __init__(self, module: nn.Module, instead: dict[str, Tensor]) -> None:
        super().__init__()
        # Untied: of a submodule that stands in two places, torch would put the stand-in back in the end, for good.
        self._call = lambda *args, **kwargs: torch.func.functional_call(module, instead, args, kwargs, tie_weights=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)
