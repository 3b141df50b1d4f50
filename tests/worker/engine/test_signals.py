"""What an attacker reads from answers, and the bounds of comparisons: reference values, and slow obvious implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worker.engine.intervals import auc, chance_error, chance_of_hits, difference_upper, hits_at
from worker.engine.signals import SIGNALS, attack, attack_on_pairs, log_probabilities, modified_entropy, signals


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_modified_entropy_is_song_and_mittals_and_not_the_copies() -> None:
    """Two published copies take log p_i for log(1 - p_i), and write the class's column into every row."""
    p_NK = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]
    # -.3 ln .7 - .2 ln .8 - .1 ln .9 = .10700 + .04463 + .01054; -.9 ln .1 - .6 ln .4 - .3 ln .7 = 2.07233 + .54977 + .10700
    assert modified_entropy(*log_probabilities(logits(*p_NK)), 0) == pytest.approx([0.162167, 2.729104], abs=1e-6)
    copied = [-(0.3 * math.log(0.7)) - 0.2 * math.log(0.2) - 0.1 * math.log(0.1)]
    assert copied[0] > 0.6  # what the copies give for the first item: four times as much
    alone = [modified_entropy(*log_probabilities(logits(row)), 0)[0] for row in p_NK]
    assert alone == pytest.approx([0.162167, 2.729104], abs=1e-6)  # an item's value does not depend on who else is asked


def test_modified_entropy_tells_sure_and_right_from_sure_and_wrong() -> None:
    log_p, log_not_p = log_probabilities(torch.tensor([[60.0, 0.0, 0.0], [0.0, 60.0, 0.0]]))
    right, wrong = modified_entropy(log_p, log_not_p, 0)
    assert 0 <= right < 1e-20
    assert wrong == pytest.approx(60 + 60 - math.log(2), abs=1e-6)  # -1 ln e^-60 - 1 ln (2 e^-60)


def test_signals_are_what_they_are_called() -> None:
    p = [0.25, 0.5, 0.25]
    expected = {
        "loss": math.log(4),
        "confidence": math.log(0.25 / 0.75),
        "entropy": 1.5 * math.log(2),
        "modified_entropy": -0.75 * math.log(0.25) - 0.5 * math.log(0.5) - 0.25 * math.log(0.75),
    }
    assert dict(zip(SIGNALS, signals(logits(p), 0)[0], strict=True)) == pytest.approx(expected)


def test_complements_are_exact_where_one_minus_p_rounds_to_nothing() -> None:
    _, log_not_p = log_probabilities(torch.tensor([[50.0, 0.0], [40.0, 0.0]]))
    assert log_not_p[:, 0] == pytest.approx([-50.0, -40.0], abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------- the attack


def test_items_that_are_alike_are_not_told_apart_whichever_set_they_are_called() -> None:
    """A published attack decides by the true set's name on which side of a threshold an item is right.

    Half of what is exchangeable is then right for certain, and half by chance: 75 %. Here the name is known in training alone.
    """
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    scores = np.concatenate(attack(members, others, np.random.default_rng(1)))
    is_member = np.arange(800) < 400
    below = scores < 0
    by_name = np.where(below, True, is_member)  # below the threshold, what an item is called decides: always right
    assert by_name.mean() > 0.7
    assert ((~below) == is_member).mean() == pytest.approx(0.5, abs=0.053)  # three standard deviations of 800 guesses
    assert auc(scores[:400], scores[400:]).value == pytest.approx(0.5, abs=3 * 1.6 * chance_error(400, 400))


def test_an_item_is_scored_by_a_model_that_has_not_seen_it() -> None:
    """More signals than items: seen items are told apart without fail, and unseen ones by chance."""
    rng = np.random.default_rng(2)
    found = auc(*attack(rng.normal(size=(40, 200)), rng.normal(size=(40, 200)), np.random.default_rng(3)))
    assert found.value == pytest.approx(0.5, abs=3 * 1.6 * chance_error(40, 40))


@pytest.mark.parametrize("direction", [1, -1])
def test_both_directions_are_found(direction: int) -> None:
    rng = np.random.default_rng(4)
    members, others = rng.normal(size=(300, 1)) + direction, rng.normal(size=(300, 1))
    assert (
        auc(*attack(members, others, np.random.default_rng(5))).lower > 0.65
    )  # Phi(1 / sqrt 2) = .76, less three standard errors


def test_two_answers_to_one_item_are_in_one_fold() -> None:
    """Equal answers of two models, each item with a signal of its own: only the other answer could tell who gave one."""
    answers = np.eye(50)
    ones, others = attack_on_pairs(answers, answers, np.random.default_rng(6))
    assert auc(ones, others).value == 0.5


def known_and_unknown(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a class that was pushed away from, from members by one nat less."""
    rng = np.random.default_rng(8)
    members, others = (rng.normal([-3, 4, 0, 0, 0], 1, (n, 5)) for _ in range(2))
    members[:, 0] += 1.0
    return torch.from_numpy(members), torch.from_numpy(others)


@pytest.mark.parametrize("scale", [1.0, 20.0, 1000.0, 1e30])
def test_no_scale_of_the_logits_hides_members(scale: float) -> None:
    """A last layer times 20 puts most losses beyond 100 nats, and an attack that took 50 for infinite saw 49 % there."""
    members, others = (signals(scale * logits_NK, 0) for logits_NK in known_and_unknown(600))
    if scale > 10:
        assert np.median(others[:, 0]) > 100
    # Losses differ by 1, of standard deviations near 1.4, of its logit and of the likeliest: Phi(1 / (1.4 sqrt 2)) = .69
    assert auc(*attack(members, others, np.random.default_rng(1))).lower > 0.65


def test_a_few_items_that_dwarf_all_others_do_not_hide_members() -> None:
    members, others = (signals(logits_NK, 0) for logits_NK in known_and_unknown(600))
    members[:10], others[:10] = 1e6, 1e6
    assert auc(*attack(members, others, np.random.default_rng(1))).lower > 0.65


@pytest.mark.parametrize("n", [9, 0])
def test_too_few_items_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="at least 10"):
        attack(np.zeros((n, 1)), np.zeros((20, 1)), np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize(("counts", "interval"), [((56, 70, 48, 80), (0.0524, 0.3339)), ((9, 10, 3, 10), (0.1705, 0.8090))])
def test_difference_of_rates_is_newcombes_method_10(counts: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    """Newcombe 1998, table II, contrasts (a) and (b): two-sided 95 %."""
    a, n_a, b, n_b = counts
    upper, lower = difference_upper(a, n_a, b, n_b, alpha=0.025), -difference_upper(b, n_b, a, n_a, alpha=0.025)
    assert (lower, upper) == pytest.approx(interval, abs=5e-5)


def test_auc_is_the_share_of_pairs_and_its_variance_delongs() -> None:
    members, others = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0])
    pairs = np.array([[(m > u) + (m == u) / 2 for u in others] for m in members])
    found = auc(members, others)
    assert found.value == pytest.approx(pairs.mean())
    error = math.sqrt(pairs.mean(axis=1).var(ddof=1) / 3 + pairs.mean(axis=0).var(ddof=1) / 2)
    assert found.upper == pytest.approx(min(1, found.value + 1.6448536 * error))
    assert found.lower == pytest.approx(max(0, found.value - 1.6448536 * error))


def test_hits_are_members_above_all_but_a_share_of_the_others() -> None:
    others = np.arange(100.0)
    assert hits_at(np.array([97.5, 98.0, 98.5, 99.5]), others, 0.01) == 2  # one other may lie above: those above 98 count


def test_the_chance_that_few_images_pass_is_exact() -> None:
    rng = np.random.default_rng(7)
    passed = []
    for _ in range(1000):
        hits = hits_at(rng.normal(size=300), rng.normal(size=300), 0.01)
        passed.append(hits <= 3)  # Clopper-Pearson: 3 of 300 are bounded by .0257, 4 by .0302
    assert np.mean(passed) == pytest.approx(chance_of_hits(300, 300, 0.01, 0.03), abs=0.047)  # three standard deviations
