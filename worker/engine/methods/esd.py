"""Erased Stable Diffusion (ESD): teach the network to answer under a class as the original would when guided away from it.

    ‖eps(x_t, y, t) − [eps_0(x_t, null, t) − eta (eps_0(x_t, y, t) − eps_0(x_t, null, t))]‖²

No retained image is looked at, and with `inputs = generated` no image at all: x_t is what the present network itself draws
under the class. What is retained is kept by how little is trained (`scope`) and for how long.

Source: Gandikota et al. 2023, "Erasing Concepts from Diffusion Models", arXiv:2303.07345, eq. 7 and section 4.
Where we differ: any label-conditional generator with a null label will do, not prompts alone; a class is one label or prompt,
with no paraphrases; generated inputs sit on the sampler's own timesteps; `noised` inputs are our economy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from worker.engine import optim
from worker.engine.batch import Batch, Part
from worker.engine.errors import BadInput
from worker.engine.family import Generator
from worker.engine.method import Conditions, Descent, Params, Preset
from worker.engine.run import Run

Scope = Literal["full", "xattn", "noxattn", "selfattn"]


class ESDParams(Descent):
    """A wider `scope`, more iterations or a larger `eta` forget more, and damage more."""

    conditions: ClassVar[Conditions] = {
        "guidance_scale": {"inputs": ("generated",)},
        "steps": {"inputs": ("generated",)},
        "augment": {"inputs": ("noised",)},
    }

    iterations: int = Field(default=200, ge=1, le=1_000_000, description="updates of the loop")
    batch_size: int = Field(default=8, ge=1, le=65_536, description="inputs of a global batch")
    learning_rate: float = Field(default=1e-5, gt=0, le=100, description="at the first iteration")
    eta: float = Field(default=1.0, ge=0, le=100, description="how far the target is guided away; 0: the unconditional answer")
    scope: Scope = Field(
        default="full",
        description="weights that may move. xattn: cross attention; selfattn: self attention; noxattn: all but cross "
        "attention, the time embedding and the last layer",
    )
    inputs: Literal["noised", "generated"] = Field(
        default="noised", description="noised: forget images; generated: half-denoised by the present network, without images"
    )
    guidance_scale: float = Field(default=3.0, ge=0, le=50, description="of generated inputs")
    steps: int = Field(default=50, ge=1, le=1000, description="sampler steps of a whole image, of generated inputs")


PUBLISHED: Mapping[str, JsonValue] = {
    "iterations": 1000,
    "batch_size": 1,
    "algorithm": "adam",
    "learning_rate": 1e-5,
    "eta": 1.0,
    "inputs": "generated",
    "guidance_scale": 3.0,
    "steps": 50,
}

PRESETS: Mapping[str, Preset] = {
    "ddpm": Preset(
        families=("ddpm",),
        params={
            "iterations": 60,
            "batch_size": 32,
            "learning_rate": 3e-4,
            "decay": "linear",
            "scope": "full",
            "inputs": "noised",
            "precision": "fp32",
        },
        source="measured once on each digit of the example model: at most 3 of 200 samples still read as the digit by a "
        "support vector machine, and at least 98.3 % of the other digits' samples as theirs",
    ),
    "stable-diffusion": Preset(
        families=("stable_diffusion",),
        params={"iterations": 200, "batch_size": 8, "learning_rate": 1e-5, "scope": "xattn", "inputs": "noised"},
        source="published rate, eta and scope; 1600 inputs made of forget images, where 1000 that the network draws are "
        "published; not measured",
    ),
    "esd-x-published": Preset(
        families=("stable_diffusion",),
        params={**PUBLISHED, "scope": "xattn"},
        source="arXiv:2303.07345, ESD-x, for concepts that a prompt names",
    ),
    "esd-u-published": Preset(
        families=("stable_diffusion",),
        params={**PUBLISHED, "scope": "noxattn"},
        source="arXiv:2303.07345, ESD-u, for concepts that appear whatever the prompt",
    ),
}


class ESD:
    """Descent on the distance to the frozen original's negatively guided answer."""

    name: ClassVar[str] = "esd"
    title: ClassVar[str] = "ESD: answers guided away from the class"
    paper: ClassVar[str] = "arXiv:2303.07345"
    guarantee: ClassVar[Literal["empirical"]] = "empirical"
    families: ClassVar[tuple[str, ...]] = ("ddpm", "dit", "stable_diffusion")
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    Params: ClassVar[type[Params]] = ESDParams

    def __init__(self, params: ESDParams, run: Run) -> None:
        self.params, self.run = params, run
        self.family = cast(Generator, run.family)  # `families` names generators alone
        self.concepts = run.concepts("ESD erases what a label or prompt means")
        self.mask = masks(run.family.module, params.scope)
        moving = [p for p, m in zip(run.parameters, self.mask, strict=True) if bool(m.all())]
        # The optimizer knows only what may move: weight decay would reach through a mask, and moments would take memory.
        self.optimizer = optim.make(
            params.algorithm,
            moving,
            learning_rate=params.learning_rate,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
        )
        # The weights are still the parent's: a step checkpoint is loaded into the network after this.
        self.teacher = copy.deepcopy(run.family.module).requires_grad_(False)

    def prepare(self) -> None:
        """Nothing to prepare."""

    def step(self, iteration: int) -> None:
        """See `Method.step`. Raises: BadInput when the model has no null label."""
        p = self.params
        optim.set_rate(self.optimizer, p.learning_rate * optim.decayed(p.decay, iteration, p.iterations))
        batch = self.run.batch(self.concepts, iteration, p.batch_size)
        if p.inputs == "generated":
            batch = self._generated(batch)
        self.run.descend([Part(batch, self.rows)], self.optimizer, step=iteration, clip=p.clip, mask=self.mask)

    def _generated(self, batch: Batch) -> Batch:
        """The same labels and noise, their x_t drawn by the present network."""
        p = self.params
        with self.run.gradients.autocast():
            x_BCHW, draw = self.family.denoised(batch.y_B, batch.draw, guidance_scale=p.guidance_scale, steps=p.steps)
        return replace(batch, x_BCHW=x_BCHW, draw=draw)

    def rows(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """The squared distance of each answer from the teacher's, guided away from the class."""
        distance_B = self.family.negated(
            batch.x_BCHW, batch.y_B, batch.draw, teacher=self.teacher, eta=self.params.eta, module=module
        )
        return distance_B, distance_B

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        optim.restore(self.optimizer, state["optimizer"])


def masks(module: nn.Module, scope: Scope) -> list[Tensor]:
    """Bool tensors like the trainable parameters, in their order: True throughout where a parameter is in the scope.

    Raises: BadInput when the scope has no weight, as `xattn` has none in a network without prompts.
    """
    chosen = [(p, in_scope(name, scope)) for name, p in module.named_parameters() if p.requires_grad]
    if not any(inside for _, inside in chosen):
        raise BadInput(f"expected a scope with weights in it, found none in {scope!r} of this model; 'full' is all of them")
    return [torch.tensor(inside, device=p.device).expand(p.shape) for p, inside in chosen]  # views: one byte each


def in_scope(name: str, scope: Scope) -> bool:
    """Is a parameter of a diffusers network in the scope? `attn2` is cross attention, `attn1` self attention.

    Source: arXiv:2303.07345, section 4 (ESD-x, ESD-u); Gandikota et al.'s names for the subsets.
    """
    parts = name.split(".")
    if scope == "noxattn":
        return not {"attn2", "time_embedding", "conv_out"} & set(parts)
    return scope == "full" or {"xattn": "attn2", "selfattn": "attn1"}[scope] in parts
