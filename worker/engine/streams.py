"""Endless streams of training items without a memory: what comes at iteration i follows from (seed, name, i) alone.

So a resumed run sees what an unbroken one would have seen, and all ranks deal the same global batch.
"""

from __future__ import annotations

import hashlib
import math
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
        return self.between(iteration * size, (iteration + 1) * size)

    def between(self, first: int, end: int) -> Tensor:
        """(end - first,) positions in the dataset: a stretch of the endless stream."""
        n = len(self.indices_N)
        parts = [torch.empty(0, dtype=torch.int64)]
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

    def named(self, name: str) -> Stream:
        """The same items in an order of their own."""
        return Stream(name, self.seed, self.indices_N, self.labels_N)

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


@dataclass(frozen=True)
class Mixture:
    """Items of two streams, the first's a fixed share of what is dealt: over any number of batches, to within one item.

    What methods ask of a stream may be asked of it.
    """

    name: str
    real: Stream
    proxy: Stream
    share: float
    """Of the real ones, in (0, 1)."""

    @property
    def seed(self) -> int:
        """Of both streams."""
        return self.real.seed

    @property
    def indices_N(self) -> Tensor:
        """int64 positions in the dataset, of all items that may be dealt."""
        return torch.cat([self.real.indices_N, self.proxy.indices_N])

    @property
    def labels_N(self) -> Tensor:
        """Their classes."""
        return torch.cat([self.real.labels_N, self.proxy.labels_N])

    def generator(self, *names: str | int) -> torch.Generator:
        """A generator that belongs to this stream and `names`."""
        return generator(self.seed, self.name, *names)

    def pick(self, iteration: int, size: int) -> Tensor:
        """(size,) positions in the dataset: the global batch of `iteration`, real ones and others in random order."""
        first, end = iteration * size, (iteration + 1) * size
        real_first, real_end = math.floor(first * self.share), math.floor(end * self.share)
        both = [self.real.between(real_first, real_end), self.proxy.between(first - real_first, end - real_end)]
        return torch.cat(both)[torch.randperm(size, generator=self.generator("mix", iteration))]

    def named(self, name: str) -> Mixture:
        """The same items at the same share, in an order of their own."""
        return Mixture(name, self.real.named(name), self.proxy.named(f"{name}-proxy"), self.share)

    def stratified(self, count: int) -> Stream:
        """At most `count` of the items, at the share; as many as that leaves, and as evenly over the classes as they allow."""
        most_real, most_proxy = len(self.real.indices_N) / self.share, len(self.proxy.indices_N) / (1 - self.share)
        count = math.floor(min(count, most_real, most_proxy))  # of a share near 0 or 1 one of them may be infinite
        real = math.floor(count * self.share)
        parts = [_evenly(self.real, real), _evenly(self.proxy, count - real)]
        indices_N, labels_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Stream(f"{self.name}-part", self.seed, indices_N, labels_N)


def _evenly(stream: Stream, count: int) -> tuple[Tensor, Tensor]:
    """Positions and classes of so many items: of every class in turn one at random, as long as it has any."""
    turn_N = torch.empty(len(stream.indices_N), dtype=torch.int64)
    for k in stream.labels_N.unique().tolist():
        of_class = torch.nonzero(stream.labels_N == k).squeeze(1)
        turn_N[of_class] = torch.randperm(len(of_class), generator=stream.generator("stratified", k))
    row_N = turn_N.argsort(stable=True)[:count]
    return stream.indices_N[row_N], stream.labels_N[row_N]
