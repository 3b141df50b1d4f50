"""Streams have no memory: what they deal follows from seed, name and iteration."""

from __future__ import annotations

import pytest
import torch

from worker.engine.errors import BadInput
from worker.engine.streams import Stream, generator


def stream(n: int = 10, seed: int = 1, name: str = "forget") -> Stream:
    return Stream(name, seed, torch.arange(100, 100 + n), torch.arange(n) % 3)


def test_every_pass_shows_every_item_once() -> None:
    # 10 items in batches of 4: iterations 0-4 are 20 positions, exactly two passes.
    dealt = torch.cat([stream().pick(i, 4) for i in range(5)])
    assert sorted(dealt[:10].tolist()) == list(range(100, 110))
    assert sorted(dealt[10:].tolist()) == list(range(100, 110))
    assert dealt[:10].tolist() != dealt[10:].tolist()


def test_a_batch_does_not_depend_on_what_was_dealt_before() -> None:
    assert torch.equal(stream().pick(3, 4), stream().pick(3, 4))
    assert not torch.equal(stream().pick(3, 4), stream(seed=2).pick(3, 4))
    assert not torch.equal(stream().pick(3, 4), stream(name="retain").pick(3, 4))


def test_a_batch_may_be_larger_than_the_stream() -> None:
    assert torch.bincount(stream(3).pick(0, 7) - 100).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_a_stratified_part_is_balanced_and_keeps_labels_with_their_items() -> None:
    part = Stream("retain", 1, torch.arange(60), torch.arange(60) % 3).stratified(9)
    assert torch.bincount(part.labels_N).tolist() == [3, 3, 3]
    assert torch.equal(part.indices_N % 3, part.labels_N)
    assert len(set(part.indices_N.tolist())) == 9


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(BadInput, match="forget stream"):
        stream(0)


def test_generators_with_different_names_differ() -> None:
    draws = {float(torch.rand(1, generator=generator(0, *names))) for names in (("a",), ("b",), ("a", 1), ("a", 2))}
    assert len(draws) == 4
