"""Looks during the loop (tier L1): is what is to be forgotten forgotten already, and the rest as it was?

A look saves iterations and verifies nothing. So that it cannot learn what verification will ask, it has a judge of its own,
taught and measured on training images alone, and noise that follows from the unlearner's seed. Of classifiers the answers to
training images are looked at. What is held out is not touched.

The same images are looked at every time: whether it is enough after i iterations depends on the weights then, and on nothing
that a resumed run would have to remember.

Shapes: N images of a look, of which every rank asks its rows; C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from worker.contract import Spec
from worker.engine import judge as judges
from worker.engine.data import Dataset
from worker.engine.errors import BadInput, Diverged
from worker.engine.family import Classifier, Generator
from worker.engine.judge import Judge
from worker.engine.judge_networks import WATCHER
from worker.engine.method import Method, Params
from worker.engine.run import Run
from worker.engine.sampling import PATIENCE
from worker.engine.statistics import upper_bound
from worker.engine.streams import generator

APART = 10
"""One of so many training images of a class is kept apart from the judge's training, to measure the judge by."""


def require_lookable(spec: Spec, method: type[Method], params: Params) -> None:
    """Raises: BadInput when looks are asked for, and cannot be taken or must not decide when this run ends."""
    if not params.early_stop_every:
        return
    if spec.forget_samples:
        raise BadInput("expected classes to forget where early_stop_every is set, found single images: a look asks for classes")
    if method.guarantee == "exact-retrain":
        raise BadInput(
            f"expected early_stop_every of 0 for {method.name}: a judge that knows the forgotten classes would decide when it "
            "ends, and what comes out would not be independent of them"
        )
    if params.sharding == "sharded":
        raise BadInput("expected sharding 'auto' or 'replicated' where early_stop_every is set, found 'sharded'")


def look_of(run: Run, folder: Path) -> Look | None:
    """The looks of a run, ready to be taken; None where none is asked for. A collective.

    Args:
        run: its network still has the weights that it began with.
        folder: of cached judges.

    Raises:
        BadInput: too few training images of a forgotten class, or what the run begins with cannot be asked.
        JudgeUnfit: the judge is not good enough on the training images that are kept apart for that.
    """
    return Look(run, folder) if run.params.early_stop_every else None


@dataclass(frozen=True)
class Seen:
    """What a look found."""

    upper: float
    """Of the forgotten classes' rates the largest bound, one-sided 95 %."""
    drop: float
    """Share of the retained images that is recognised no longer, less what is recognised only now."""


def compared(asked_N: Tensor, before_N: Tensor, now_N: Tensor, forgotten: Sequence[int]) -> Seen:
    """What a look found.

    Args:
        asked_N: int64, the class of each image.
        before_N, now_N: bool, is it recognised as that, when the run began and now.
        forgotten: classes of which none should be; all others are retained.
    """
    of_class = [now_N[asked_N == k] for k in forgotten]
    upper = max(upper_bound(int(right_M.sum()), len(right_M)) for right_M in of_class)
    kept_N = ~torch.isin(asked_N, torch.tensor(forgotten))
    before, now = (float(right_N[kept_N].double().mean()) for right_N in (before_N, now_N))
    return Seen(upper, before - now)


class Look:
    """Asks the network of a run for the same images, or about them, whenever it is called."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._spec, self._params = run, run.spec, run.params
        self._draws = run.family.kind == "generator"
        # Images travel over gloo between GPUs, too; the others wait for as long as it takes to teach the judge.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if run.ranks.world > 1 else None
        self._asked_N = self._asked()
        self._index_N = torch.empty(0) if self._draws else self._items()
        self._judge = self._taught(folder) if self._draws and run.ranks.first else None
        before_N = self._predicted()
        if run.ranks.any(run.ranks.first and before_N is None):
            raise BadInput("expected a model that can be asked before the first iteration, found NaN or infinite answers")
        self._right_before_N = None if before_N is None else before_N == self._asked_N

    def enough(self, iteration: int) -> bool:
        """Is enough forgotten after so many iterations, and nothing lost? The same answer on every rank. A collective.

        An answer that is not finite is no sign of forgetting: it is not enough then.
        """
        predicted_N = self._predicted()
        enough = False
        if predicted_N is not None:
            assert self._right_before_N is not None
            right_N = predicted_N == self._asked_N
            seen = compared(self._asked_N, self._right_before_N, right_N, self._spec.all_forgotten)
            enough = seen.upper <= self._params.early_stop_rate and seen.drop <= self._params.early_stop_drop
            found = {"forget_rate_upper95": round(seen.upper, 6), "retained_drop": round(seen.drop, 6)}
            self._run.events.note({"look_after_iteration": iteration, **found, "enough": enough})
        return bool(self._run.ranks.from_first(int(enough)))

    # --------------------------------------------------------------------------------------------------- what is asked for

    def _asked(self) -> Tensor:
        """(N,) int64: the class of each image: n of every forgotten one, and about as many of all retained ones together."""
        n, retained = self._params.early_stop_samples, self._spec.retain_classes
        counts = {**dict.fromkeys(self._spec.all_forgotten, n), **dict.fromkeys(retained, -(-n // len(retained)))}
        if not self._draws:
            counts = {k: min(count, len(self._run.dataset.train_of([k]))) for k, count in counts.items()}
            for k in self._spec.all_forgotten:
                if not counts[k] or upper_bound(0, counts[k]) > self._params.early_stop_rate:
                    raise BadInput(
                        f"{counts[k]} training images of {self._spec.class_names[k]!r} cannot show a rate of "
                        f"{self._params.early_stop_rate} at 95 %; expected more, or a higher early_stop_rate"
                    )
        return torch.tensor([k for k, count in counts.items() for _ in range(count)], dtype=torch.int64)

    def _items(self) -> Tensor:
        """(N,) positions of training items of those classes."""
        parts = []
        for k in self._asked_N.unique_consecutive().tolist():
            of_class = self._run.dataset.train_of([k])
            order = torch.randperm(len(of_class), generator=generator(self._spec.seed, "early-stop", k))
            parts.append(of_class[order[: int((self._asked_N == k).sum())]])
        return torch.cat(parts)

    def _taught(self, folder: Path) -> Judge:
        """The judge of looks. Raises: JudgeUnfit."""
        policy, device = self._spec.policy.judge, self._run.ranks.device
        data = training_part(self._run.dataset, policy.seed)
        digest = hashlib.sha256(json.dumps([self._spec.dataset.digest, data.ids]).encode()).hexdigest()
        judge, origin = judges.obtain(data, digest, policy, folder, device, seat=WATCHER)
        self._run.events.note({"judge": origin, "name": judge.record.name, "accuracy": judge.record.held_out_accuracy})
        return judge

    # ------------------------------------------------------------------------------------------------------------- answers

    def _predicted(self) -> Tensor | None:
        """(N,) the class that each image shows, or gets; on other ranks than the first, or where one is not finite, None."""
        rows = self._run.ranks.rows(len(self._asked_N))
        try:
            mine = self._drawn(rows) if self._draws else self._named(rows)
        except Diverged:
            mine = None
        answers = self._gathered(mine)
        if not self._run.ranks.first or any(answer is None for answer in answers):
            return None
        together = torch.cat([answer for answer in answers if answer is not None])
        return together if self._judge is None else self._judge.look(together).predicted_N

    def _drawn(self, rows: slice) -> Tensor:
        """uint8 images of this rank's rows, drawn as verification would, from noise of the loop's own."""
        sampling = self._spec.policy.sampling
        sampling = sampling.model_copy(update={"batch_size": min(sampling.batch_size, self._params.batch_size)})
        asked_B = self._asked_N[rows]
        seeds = [noise_seed(self._spec.seed, int(k), i) for i, k in enumerate(self._asked_N.tolist())][rows]
        return cast(Generator, self._run.family).sample(asked_B, seeds, sampling=sampling)

    def _named(self, rows: slice) -> Tensor:
        """The classes that this rank's rows of training images get."""
        images_BCHW = self._run.dataset.images_NCHW[self._index_N[rows]]
        return cast(Classifier, self._run.family).logits(images_BCHW).argmax(dim=1)

    def _gathered(self, mine: Tensor | None) -> list[Tensor | None]:
        """What every rank has, on the first one; nothing on the others."""
        if self._group is None:
            return [mine]
        ranks = self._run.ranks
        answers: list[Tensor | None] | None = [None] * ranks.world if ranks.first else None
        dist.gather_object(mine, answers, dst=0, group=self._group)
        return answers or []


def noise_seed(seed: int, class_index: int, index: int) -> int:
    """Of one image of a look, in [0, 2^63): apart from what `sampling.sample_seed` gives, be the two seeds the same."""
    text = f"{seed}/early-stop/{class_index}/{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def training_part(dataset: Dataset, seed: int) -> Dataset:
    """The training items alone, one in ten of each class kept apart as held out: what a judge can be measured by.

    Of a class with a single training item that one is learned from; such a judge is unfit, as nothing shows that it knows it.
    """
    every = range(len(dataset.class_names))
    chosen_N = dataset.train_of(every)
    labels_N = dataset.labels_N[chosen_N]
    apart_N = torch.zeros(len(chosen_N), dtype=torch.bool)
    for k in every:
        row_M = torch.nonzero(labels_N == k).squeeze(1)
        order_M = torch.randperm(len(row_M), generator=generator(seed, "early-stop", "apart", k))
        apart_N[row_M[order_M[: -(-len(row_M) // APART) if len(row_M) > 1 else 0]]] = True
    return replace(
        dataset,
        images_NCHW=dataset.images_NCHW[chosen_N],
        labels_N=labels_N,
        ids=tuple(dataset.ids[i] for i in chosen_N.tolist()),
        held_out_N=apart_N,
    )
