"""Endless streams of training items without a memory: what comes at iteration i follows from (seed, name, i) alone.

So a resumed run sees what an unbroken one would have seen, and all ranks deal the same global batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

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
    _orders: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.indices_N) == 0:
            raise BadInput(f"the {self.name} stream has no training image")

    def generator(self, *names: str | int) -> torch.Generator:
        """A generator that belongs to this stream and `names`."""
        return generator(self.seed, self.name, *names)

    def pick(self, iteration: int, size: int) -> Tensor:
        """(size,) positions in the dataset: the global batch of `iteration`. Every pass shows every item once."""
        n = len(self.indices_N)
        first, end = iteration * size, (iteration + 1) * size
        parts = []
        for number in range(first // n, (end - 1) // n + 1):
            order_N = self._order(number)
            parts.append(order_N[max(first - number * n, 0) : end - number * n])
        return self.indices_N[torch.cat(parts)]

    def _order(self, number: int) -> Tensor:
        """(N,) the order of a pass; the last two are remembered, as a batch may lie across them."""
        if number not in self._orders:
            while len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            self._orders[number] = torch.randperm(len(self.indices_N), generator=self.generator("pass", number))
        return self._orders[number]

    def stratified(self, count: int) -> Stream:
        """About `count` of the items, as evenly over the classes as they allow; at least one of each."""
        chosen = []
        classes = self.labels_N.unique()
        share = max(1, round(count / len(classes)))
        for k in classes.tolist():
            of_class = torch.nonzero(self.labels_N == k).squeeze(1)
            order = torch.randperm(len(of_class), generator=self.generator("stratified", k))
            chosen.append(of_class[order[:share]])
        row_N = torch.cat(chosen)
        return Stream(f"{self.name}-part", self.seed, self.indices_N[row_N], self.labels_N[row_N])
