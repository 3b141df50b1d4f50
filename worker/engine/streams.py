"""Endless streams of training items without a memory: what comes at iteration i follows from (seed, name, i) alone.

So a resumed run sees what an unbroken one would have seen, and all ranks deal the same global batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.errors import BadInput


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator of its own for every (seed, names)."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # torch takes 63 bits of it


@dataclass(frozen=True)
class Stream:
    """Items in a fresh random order each pass, dealt in global batches.

    `indices_N`: int64 positions in the dataset; `labels_N`: their classes.
    """

    name: str
    seed: int
    indices_N: Tensor
    labels_N: Tensor

    def __post_init__(self) -> None:
        if len(self.indices_N) == 0:
            raise BadInput(f"the {self.name} stream has no training image")

    def generator(self, *names: str | int) -> torch.Generator:
        """A generator that belongs to this stream and `names`."""
        return generator(self.seed, self.name, *names)

    def pick(self, iteration: int, size: int) -> Tensor:
        """(size,) positions in the dataset: the global batch of `iteration`. Every pass shows every item once."""
        n = len(self.indices_N)
        position_B = torch.arange(iteration * size, (iteration + 1) * size)
        pass_B = position_B // n
        orders = {p: torch.randperm(n, generator=self.generator("pass", p)) for p in pass_B.unique().tolist()}
        return torch.stack([self.indices_N[orders[int(p)][i]] for p, i in zip(pass_B, position_B % n, strict=True)])

    def stratified(self, count: int) -> Stream:
        """About `count` of the items, as evenly over the classes as they allow; at least one of each."""
        chosen = []
        classes = self.labels_N.unique()
        for k in classes.tolist():
            of_class = self.indices_N[self.labels_N == k]
            share = max(1, round(count / len(classes)))
            order = torch.randperm(len(of_class), generator=self.generator("stratified", k))
            chosen.append(of_class[order[:share]])
        indices = torch.cat(chosen)
        lookup = {int(i): int(k) for i, k in zip(self.indices_N, self.labels_N, strict=True)}
        labels = torch.tensor([lookup[int(i)] for i in indices], dtype=torch.int64)
        return Stream(f"{self.name}-part", self.seed, indices, labels)
