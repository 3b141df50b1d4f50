"""Streams have no memory: what they deal follows from seed, name and iteration."""

from __future__ import annotations

import pytest
import torch

from worker.engine.errors import BadInput
from worker.engine.streams import Mixture, Stream, generator


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


def test_a_stretch_may_be_empty() -> None:
    assert stream().between(10, 10).tolist() == []
    assert stream().between(5, 5).tolist() == []
    assert torch.equal(stream().between(4, 8), stream().pick(1, 4))


def mixture(share: float, seed: int = 1, real: int = 6, proxy: int = 4) -> Mixture:
    apart = Stream("proxy", seed, torch.arange(200, 200 + proxy), torch.full((proxy,), -1))
    return Mixture("retain", stream(real, seed, "retain"), apart, share)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1 / 3])
def test_a_mixture_deals_its_share_of_real_items_to_within_one(share: float) -> None:
    dealt = torch.cat([mixture(share).pick(i, 7) for i in range(20)])
    for n in (7, 35, 140):
        assert abs(int((dealt[:n] < 200).sum()) - share * n) <= 1
    real, proxy = dealt[dealt < 200], dealt[dealt >= 200]
    assert int((torch.bincount(real - 100, minlength=6)).max() - torch.bincount(real - 100, minlength=6).min()) <= 1
    assert int((torch.bincount(proxy - 200, minlength=4)).max() - torch.bincount(proxy - 200, minlength=4).min()) <= 1


def test_a_mixture_s_batch_follows_from_seed_name_and_iteration() -> None:
    assert torch.equal(mixture(0.5).pick(3, 8), mixture(0.5).pick(3, 8))
    assert not torch.equal(mixture(0.5).pick(3, 8), mixture(0.5, seed=2).pick(3, 8))
    assert not torch.equal(mixture(0.5).pick(3, 8), mixture(0.5).named("partners").pick(3, 8))


def test_real_items_and_others_come_in_random_order() -> None:
    # Else ranks, which take contiguous rows, would see one kind each.
    kinds = [(mixture(0.5).pick(i, 8) < 200).tolist() for i in range(4)]
    assert all(sum(kind) == 4 for kind in kinds)
    assert len({tuple(kind) for kind in kinds}) > 1


def test_a_mixture_answers_what_is_asked_of_a_stream() -> None:
    mixed = mixture(0.5)
    assert mixed.indices_N.tolist() == [*range(100, 106), *range(200, 204)]
    assert mixed.labels_N.tolist() == [0, 1, 2, 0, 1, 2, -1, -1, -1, -1]
    part = mixed.stratified(6)
    assert sorted(part.labels_N.tolist()) == [-1, -1, -1, 0, 1, 2]
    assert float(torch.rand(1, generator=mixed.generator(1))) == float(
        torch.rand(1, generator=stream(name="retain").generator(1))
    )


@pytest.mark.parametrize(
    ("share", "real", "proxy", "wanted", "taken"),
    [
        (0.25, 600, 40, 4096, (13, 40)),  # 40 proxies are three quarters of 53
        (0.1, 600, 4000, 1000, (100, 900)),
        (0.9, 90, 4000, 4096, (90, 10)),
        (1e-320, 600, 4, 4096, (0, 4)),  # 600 are the share of more than a float holds
        (0.01, 600, 4, 4096, (0, 4)),  # not one real item in five: none is as near to the share as whole items allow
    ],
)
def test_a_part_of_a_mixture_holds_real_items_at_its_share_however_many_there_are(
    share: float, real: int, proxy: int, wanted: int, taken: tuple[int, int]
) -> None:
    apart = Stream("proxy", 1, torch.arange(10_000, 10_000 + proxy), torch.full((proxy,), -1))
    part = Mixture("retain", stream(real, 1, "retain"), apart, share).stratified(wanted)
    chosen = part.indices_N < 10_000
    assert (int(chosen.sum()), int((~chosen).sum())) == taken
    assert len(part.indices_N.unique()) == sum(taken)
    assert bool((part.labels_N[chosen] == (part.indices_N[chosen] - 100) % 3).all())
    of_class = torch.bincount(part.labels_N[chosen], minlength=3)
    assert int(of_class.max() - of_class.min()) <= 1
