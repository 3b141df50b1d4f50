"""What verification could not measure whatever the result, said before anything is computed.

Only for image-to-image models: their policies hide parts of held-out images, and whether that can be done is decided by the
size of the images, the cells of the model and the number of images; and a diffusion takes no more steps than its schedule has.
None of it changes by unlearning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

from worker.contract import Spec
from worker.engine import corruption, diffusion, verify
from worker.engine.data import Dataset
from worker.engine.errors import BadInput
from worker.engine.family import Family, ImageToImage
from worker.engine.inpainting import Inpainting
from worker.verdict import NEEDS_HELD_OUT, owed


@runtime_checkable
class Counting(Protocol):
    """A check that knows how many held-out images it needs; it asks itself the same before it measures."""

    def require_enough(self, spec: Spec, held_out: Sequence[int]) -> None:
        """Of each class, in index order, so many are held out. Raises: BadInput when they could show nothing."""
        ...


def require_measurable(spec: Spec, family: Family, dataset: Dataset) -> None:
    """Raise what the checks of the spec's policy would raise after training.

    Raises:
        BadInput: a corruption hides all or nothing of these images, the policy's sampler takes more steps than the model has, a
            check of the policy cannot run, or there are too few held-out images for it to show anything.
    """
    if family.kind != "i2i":
        return
    grid = corruption.grid_of(dataset.image_shape[1:], cast(ImageToImage, family).cell)
    for mask in spec.policy.sampling.corruptions:
        corruption.hidden_count(mask, grid)
    if isinstance(family, Inpainting):
        diffusion.require_steps(family.schedule, spec.policy.sampling)
        diffusion.sampler_of(family.schedule, spec.policy.sampling)
    due = owed(spec)
    for check in (c for c in spec.policy.checks if c.verifier in due):
        planned = verify.plan(check, spec, family.kind)
        if planned.verifier is None:
            raise BadInput(f"{check.verifier} could not be measured ({planned.trouble})")
        if isinstance(planned.verifier, Counting):
            planned.verifier.require_enough(spec, dataset.held_out_counts)
        if NEEDS_HELD_OUT.get(check.verifier) == "all":
            _require_every_class(check.verifier, dataset)


def _require_every_class(verifier: str, dataset: Dataset) -> None:
    """Classes that are set aside, too: a judge is tried on all of them before its word counts on any."""
    none = [name for name, n in zip(dataset.class_names, dataset.held_out_counts, strict=True) if not n]
    if none:
        wanted = f"expected held-out images of every class, found none of {', '.join(none)}"
        raise BadInput(f"{verifier} could not be measured: {wanted}")
