"""What all label- or prompt-conditional diffusion families share: the noise process, its losses and its samplers.

A family says how its network is asked; everything here is the same for pixels and latents.

Shape suffixes: B images, C channels, H, W pixels or latent cells. Letters: x clean input, t timestep, eps the noise, abar the
cumulative product of 1 - beta.
Source: Ho et al. 2020 (arXiv:2006.11239) for the loss; Song et al. 2020 (arXiv:2010.02502) for DDIM with eta = 0; Lu et al.
2022 (arXiv:2211.01095) for DPM-Solver++; Ho & Salimans 2022 (arXiv:2207.12598) for guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from worker.contract import Sampling
from worker.engine.errors import BadInput, BadModel, Diverged
from worker.engine.family import Augment, Draw, sent

Sampler = DDIMScheduler | DPMSolverMultistepScheduler

PREDICTIONS = ("epsilon", "v_prediction")

Ask = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(module, x_t (B,C,H,W), t (B,), y (B,)) -> prediction (B,C,H,W), float32."""


def schedule_of(config: Mapping[str, Any]) -> DDIMScheduler:
    """The noise schedule of a model folder; an empty config gives the DDPM paper's (linear, 1000 steps).

    Raises: BadModel for a configuration that diffusers cannot build, or a prediction that is neither noise nor velocity.
    """
    try:
        scheduler = DDIMScheduler.from_config(config or DDIMScheduler().config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadModel(f"diffusers cannot build this noise schedule: {error}") from error
    if scheduler.config.prediction_type not in PREDICTIONS:
        raise BadModel(f"expected prediction_type in {PREDICTIONS}, found {scheduler.config.prediction_type!r}")
    return scheduler


def sides(config: Mapping[str, Any]) -> tuple[int, int]:
    """(h, w) that a diffusers UNet works on. Raises: BadModel when its configuration does not say."""
    size = config.get("sample_size")
    both = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(both) != 2 or not all(isinstance(n, int) and n > 0 for n in both):
        raise BadModel(f"expected sample_size to be one whole number, or a height and a width, found {size!r}")
    return both


def require_timesteps(config: Mapping[str, Any]) -> None:
    """Raises: BadModel for a network that is told the time by more than the number of a step."""
    kind = config.get("time_embedding_type") or "positional"
    if kind != "positional":
        raise BadModel(f"expected time_embedding_type 'positional', found {kind!r}")


def draw(
    schedule: DDIMScheduler,
    count: int,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    label_drop: float,
    augment: Augment,
) -> Draw:
    """Timesteps `t`, noise `eps` of the network's input shape, label-drop flags `drop`, mirror flags `flip`; on the CPU.

    The second half of the timesteps mirrors the first (t and T - 1 - t), as in the authors' code: the loss of a batch varies
    less, for early and late steps differ by orders of magnitude.
    """
    steps = schedule.config.num_train_timesteps
    half = torch.randint(steps, ((count + 1) // 2,), generator=generator)
    numbers = {
        "t": torch.cat([half, steps - 1 - half])[:count],
        "eps": torch.randn(count, *shape, generator=generator),
        "drop": torch.rand(count, generator=generator) < label_drop,
    }
    if augment != "none":
        numbers["flip"] = torch.rand(count, generator=generator) < 0.5
    return Draw(numbers)


@dataclass(frozen=True)
class Denoiser:
    """A network's losses and samples under its noise schedule."""

    ask: Ask
    module: nn.Module
    schedule: DDIMScheduler
    labels: int
    """Labels that may be asked for, the null label not among them."""
    null_label: int | None
    device: torch.device
    abar_T: Tensor
    more_labels: int = 0
    """Beyond those and the null label; see `Generator.with_labels`."""

    @classmethod
    def of(
        cls, ask: Ask, module: nn.Module, schedule: DDIMScheduler, *, labels: int, null: int | None, device: torch.device
    ) -> Denoiser:
        """Put together; the schedule's constants go to the device."""
        return cls(ask, module, schedule, labels, null, device, schedule.alphas_cumprod.to(device))

    # ------------------------------------------------------------------------------------------------------------- losses

    def loss(self, x_BCHW: Tensor, y_B: Tensor, drawn: Draw, *, module: nn.Module | None = None) -> Tensor:
        """(B,) mean over pixels of the squared error of the predicted noise (Ho et al. 2020, eq. 14) or velocity."""
        noisy_BCHW, target_BCHW = self._noisy_and_target(x_BCHW, drawn)
        return _apart(self._ask(module, noisy_BCHW, drawn["t"], self._shown(y_B, drawn)), target_BCHW)

    def contrast(
        self, x_BCHW: Tensor, y_B: Tensor, anchor_B: Tensor, drawn: Draw, *, module: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Labelled.contrast`; both in mean squared error over pixels, from one forward pass with a gradient."""
        noisy_BCHW, target_BCHW = self._noisy_and_target(x_BCHW, drawn)
        with torch.no_grad():
            anchored_BCHW = self._ask(None, noisy_BCHW, drawn["t"], self._shown(anchor_B, drawn))
        predicted_BCHW = self._ask(module, noisy_BCHW, drawn["t"], self._shown(y_B, drawn))
        return _apart(predicted_BCHW, target_BCHW), _apart(predicted_BCHW, anchored_BCHW)

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, drawn: Draw, *, teacher: nn.Module, module: nn.Module | None = None
    ) -> Tensor:
        """See `Family.distance`."""
        noisy_BCHW, _ = self._noisy_and_target(x_BCHW, drawn)
        shown_B = self._shown(y_B, drawn)
        with torch.no_grad():
            taught_BCHW = self._ask(teacher, noisy_BCHW, drawn["t"], shown_B)
        return _apart(self._ask(module, noisy_BCHW, drawn["t"], shown_B), taught_BCHW)

    def negated(
        self, x_BCHW: Tensor, y_B: Tensor, drawn: Draw, *, teacher: nn.Module, eta: float, module: nn.Module | None = None
    ) -> Tensor:
        """See `Generator.negated`."""
        noisy_BCHW, _ = self._noisy_and_target(x_BCHW, drawn)
        with torch.no_grad():
            class_BCHW, null_BCHW = self._both(teacher, noisy_BCHW, drawn["t"], y_B)
        target_BCHW = null_BCHW - eta * (class_BCHW - null_BCHW)
        return _apart(self._ask(module, noisy_BCHW, drawn["t"], y_B), target_BCHW)

    def _ask(self, module: nn.Module | None, noisy_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        return self.ask(module or self.module, noisy_BCHW, t_B, y_B)

    def _shown(self, y_B: Tensor, drawn: Draw) -> Tensor:
        """The labels after label drop."""
        return y_B if self.null_label is None else y_B.masked_fill(drawn["drop"], self.null_label)

    def _both(self, module: nn.Module | None, x_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor]:
        """The answers with and without the label, from one forward pass of 2B images."""
        if self.null_label is None:
            raise BadInput("expected a model with a null label, to be asked without a class; this one has none")
        labels_2B = torch.cat([y_B, torch.full_like(y_B, self.null_label)])
        answer_2B = self._ask(module, torch.cat([x_BCHW, x_BCHW]), torch.cat([t_B, t_B]), labels_2B)
        class_BCHW, null_BCHW = answer_2B.chunk(2)
        return class_BCHW, null_BCHW

    def _noisy_and_target(self, x_BCHW: Tensor, drawn: Draw) -> tuple[Tensor, Tensor]:
        return noised(x_BCHW, drawn, self.schedule, self.abar_T)

    # ----------------------------------------------------------------------------------------------------------- sampling

    @torch.inference_mode()
    def sample(
        self,
        y_B: Tensor,
        seeds: Sequence[int],
        shape: Sequence[int],
        *,
        sampling: Sampling,
        x_BCHW: Tensor | None = None,
        depth: float = 1.0,
    ) -> Tensor:
        """(B, *shape) clean inputs drawn for the labels, on the device. The null label may be asked for, unguided.

        Args:
            x_BCHW: clean inputs to begin with, made noisy up to timestep `depth` T. Source: Meng et al. 2022 (SDEdit),
                arXiv:2108.01073, section 3.

        Raises:
            BadInput: another number of seeds than labels, a label out of range, guidance without a null label, or more
                steps than the schedule has.
            Diverged: a number is not finite.
        """
        self._require_askable(y_B, seeds, sampling)
        if not 0 < depth <= 1:
            raise BadInput(f"expected a depth above 0 and at most 1, found {depth}")
        slices = [slice(i, i + sampling.batch_size) for i in range(0, len(y_B), sampling.batch_size)]
        parts = [
            self._sample_batch(y_B[p], seeds[p], shape, sampling, None if x_BCHW is None else x_BCHW[p], depth) for p in slices
        ]
        return torch.cat(parts) if parts else torch.empty(0, *shape, device=self.device)

    def _require_askable(self, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> None:
        if len(seeds) != len(y_B):
            raise BadInput(f"expected one seed an image, found {len(seeds)} for {len(y_B)}")
        known = set(range(self.labels + (self.null_label is not None) + self.more_labels))
        strange = set(y_B.tolist()) - known
        if strange:
            raise BadInput(f"expected labels 0 to {self.labels - 1}, or the null label, found {sorted(strange)[:3]}")
        self._require_samplable(sampling)

    def _require_samplable(self, sampling: Sampling) -> None:
        if sampling.guidance_scale != 1.0 and self.null_label is None:
            raise BadInput(f"guidance {sampling.guidance_scale} needs a null label and this model has none; use 1")
        require_steps(self.schedule, sampling)

    def begins_at(self, depth: float, sampling: Sampling) -> float:
        """See `Generator.begins_at`."""
        return int(_left(sampler_of(self.schedule, sampling), depth, len(self.abar_T))[0]) / len(self.abar_T)

    @torch.no_grad()
    def denoised(self, y_B: Tensor, drawn: Draw, *, guidance_scale: float, steps: int) -> tuple[Tensor, Draw]:
        """See `Generator.denoised`; DDIM with eta 0.

        x_t is given as x = 0 and eps = x_t / sqrt(1 - abar_t), which is never a division by zero.
        """
        sampling = Sampling(sampler="ddim", steps=steps, guidance_scale=guidance_scale)
        self._require_samplable(sampling)
        scheduler = sampler_of(self.schedule, sampling)
        step_S = scheduler.timesteps.cpu()
        taken_B = (step_S > drawn.on_host("t")[:, None]).sum(1).clamp(max=len(step_S) - 1)
        x_BCHW = drawn["eps"].clone()
        for i in range(int(taken_B.max())):
            row_R = sent(torch.nonzero(taken_B > i).squeeze(1), self.device)
            x_BCHW[row_R] = self._stepped(scheduler, x_BCHW[row_R], y_B[row_R], step_S[i], sampling)
        t_B = sent(step_S[taken_B], self.device)
        eps_BCHW = x_BCHW / (1 - self.abar_T[t_B]).sqrt().view(-1, 1, 1, 1)
        return torch.zeros_like(x_BCHW), Draw({**drawn.tensors, "t": t_B, "eps": eps_BCHW})

    def _sample_batch(
        self,
        y_B: Tensor,
        seeds: Sequence[int],
        shape: Sequence[int],
        sampling: Sampling,
        given_BCHW: Tensor | None,
        depth: float,
    ) -> Tensor:
        y_B = y_B.to(self.device)
        noise = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        x_BCHW = torch.stack(noise).to(self.device)
        scheduler = sampler_of(self.schedule, sampling)
        timesteps = scheduler.timesteps
        if given_BCHW is not None:
            timesteps = _left(scheduler, depth, len(self.abar_T))
            if not isinstance(scheduler, DDIMScheduler):
                scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
            abar = self.abar_T[int(timesteps[0])]
            x_BCHW = abar.sqrt() * given_BCHW.to(self.device) + (1 - abar).sqrt() * x_BCHW
        for t in timesteps:
            x_BCHW = self._stepped(scheduler, x_BCHW, y_B, t, sampling)
        if not bool(torch.isfinite(x_BCHW).all()):
            raise Diverged("the model drew an image with NaN or infinite pixels", step=0, loss=float("nan"))
        return x_BCHW

    def _stepped(self, scheduler: Sampler, x_BCHW: Tensor, y_B: Tensor, t: Tensor, sampling: Sampling) -> Tensor:
        """The scheduler's next x_t."""
        predicted_BCHW = self._guided(x_BCHW, torch.full_like(y_B, int(t)), y_B, sampling.guidance_scale)
        return stepped(scheduler, predicted_BCHW, t, x_BCHW, sampling)

    def _guided(self, x_BCHW: Tensor, t_B: Tensor, y_B: Tensor, scale: float) -> Tensor:
        """e_null + s (e_class - e_null)."""
        if scale == 1.0:
            return self._ask(None, x_BCHW, t_B, y_B)
        class_BCHW, null_BCHW = self._both(None, x_BCHW, t_B, y_B)
        return null_BCHW + scale * (class_BCHW - null_BCHW)


def noised(x_BCHW: Tensor, drawn: Draw, schedule: DDIMScheduler, abar_T: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps, and what the network should answer to it."""
    eps_BCHW, abar_B111 = drawn["eps"], abar_T[drawn["t"]].view(-1, 1, 1, 1)
    a_B111, s_B111 = abar_B111.sqrt(), (1 - abar_B111).sqrt()
    noisy_BCHW = a_B111 * x_BCHW + s_B111 * eps_BCHW
    if schedule.config.prediction_type == "v_prediction":
        return noisy_BCHW, a_B111 * eps_BCHW - s_B111 * x_BCHW
    return noisy_BCHW, eps_BCHW


def _left(scheduler: Sampler, depth: float, steps: int) -> Tensor:
    """The timesteps that are left to an image made noisy up to `depth` of so many. Raises: BadInput: none."""
    timesteps: Tensor = scheduler.timesteps[scheduler.timesteps <= depth * steps]
    if not len(timesteps):
        raise BadInput(f"expected a sampler with a step below {depth:g} of the way, found {len(scheduler.timesteps)} steps")
    return timesteps


def require_steps(schedule: DDIMScheduler, sampling: Sampling) -> None:
    """Raises: BadInput when a sampler is to take more steps than the schedule has."""
    steps = len(schedule.alphas_cumprod)
    if sampling.steps > steps:
        raise BadInput(f"expected at most {steps} sampler steps, found {sampling.steps}")


def stepped(scheduler: Sampler, predicted_BCHW: Tensor, t: Tensor, x_BCHW: Tensor, sampling: Sampling) -> Tensor:
    """The scheduler's next x_t after a prediction."""
    # Where x_0 is clipped, the direction must be recomputed from it: left inconsistent, digits lose strokes.
    extra = {"eta": 0.0, "use_clipped_model_output": True} if sampling.sampler == "ddim" else {}
    next_BCHW: Tensor = scheduler.step(predicted_BCHW, t, x_BCHW, **extra).prev_sample
    return next_BCHW


def sampler_of(schedule: DDIMScheduler, sampling: Sampling) -> Sampler:
    """A scheduler of its own for each batch: `set_timesteps` and a multistep solver's memory change the object."""
    if sampling.sampler == "ddim":
        scheduler: Sampler = DDIMScheduler.from_config(schedule.config)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(schedule.config, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(sampling.steps)
    last = int(scheduler.timesteps.max())
    if last >= len(schedule.alphas_cumprod):  # a schedule that is offset by one has one step less
        raise BadInput(
            f"{sampling.steps} sampler steps reach timestep {last}; expected at most {len(schedule.alphas_cumprod) - 1}"
        )
    return scheduler


def _apart(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    return (a_BCHW - b_BCHW).square().flatten(1).mean(1)


def to_pixels(x_BCHW: Tensor) -> Tensor:
    """[-1, 1] on any device as uint8 on the CPU."""
    return x_BCHW.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu()
