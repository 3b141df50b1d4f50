"""What an attacker reads from a classifier's answers, and how well it tells two sets of items apart by it.

Shapes: N items, K classes, S signals. Everything in float64, and in logarithms: a probability that rounds to 0 or 1 still
differs from another one that does.
Source: Song & Mittal 2021 (arXiv:2003.10595), section 4.3, for the modified entropy.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from worker.engine.statistics import Floats

FOLDS = 10
SIGNALS = ("loss", "confidence", "entropy", "modified_entropy")


def signals(logits_NK: Tensor, k: int) -> Floats:
    """(N, 4) of items of class k, in the order of `SIGNALS`: cross-entropy; probability of the class, as log odds; entropy;
    modified entropy. Only the second is larger where the model knows an item better.
    """
    log_p_NK, log_not_p_NK = log_probabilities(logits_NK)
    p_NK = np.exp(log_p_NK)
    loss_N = -log_p_NK[:, k]
    odds_N = log_p_NK[:, k] - log_not_p_NK[:, k]
    entropy_N = -(p_NK * log_p_NK).sum(axis=1)
    modified_N = modified_entropy(log_p_NK, log_not_p_NK, k)
    return np.stack([loss_N, odds_N, entropy_N, modified_N], axis=1)


def log_probabilities(logits_NK: Tensor) -> tuple[Floats, Floats]:
    """(N, K) log p and (N, K) log(1 - p); of the likeliest class the sum over all others, not one minus a rounded number."""
    z_NK = logits_NK.double().numpy()
    total_N1 = logsumexp(z_NK, axis=1, keepdims=True)
    log_p_NK = z_NK - total_N1
    rows_N, top_N = np.arange(len(z_NK)), z_NK.argmax(axis=1)
    others_NK = z_NK.copy()
    others_NK[rows_N, top_N] = -np.inf
    with np.errstate(divide="ignore"):  # of the likeliest class alone 1 - p may round to 0, and it is replaced
        log_not_p_NK = np.log1p(-np.exp(log_p_NK))
    log_not_p_NK[rows_N, top_N] = logsumexp(others_NK, axis=1) - total_N1[:, 0]
    return log_p_NK, log_not_p_NK


def modified_entropy(log_p_NK: Floats, log_not_p_NK: Floats, k: int) -> Floats:
    """(N,) of items of class k:

        Mentr = -(1 - p_k) log p_k - sum_(i != k) p_i log(1 - p_i)

    0 where the model is sure and right, without bound where it is sure and wrong; the entropy is 0 in both. Each row is summed
    over its own item alone, and the second logarithm is of 1 - p_i: published copies have log p_i there, and so an entropy.
    """
    own_N = np.exp(log_not_p_NK[:, k]) * log_p_NK[:, k]
    others_NK = np.delete(np.exp(log_p_NK) * log_not_p_NK, k, axis=1)
    return np.asarray(-own_N - others_NK.sum(axis=1))


def attack(members_MS: Floats, others_US: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(M,) and (U,) scores, higher where an item is taken for a member, by a logistic regression that has not seen the item.

    Ten folds, members and others weighing alike. Which set an item is from enters training alone, never its own score. Of each
    signal the regression sees the order of all items and nothing else, as `normal_scores`: an attacker may stretch it as he
    likes, so a model cannot hide behind losses of a thousand nats, or behind a few items that dwarf the others.

    Raises:
        ValueError: fewer than ten items of either.
    """
    if min(len(members_MS), len(others_US)) < FOLDS:
        raise ValueError(f"expected at least {FOLDS} items of either, got {len(members_MS)} and {len(others_US)}")
    x_NS = np.concatenate([members_MS, others_US])
    is_member_N = np.arange(len(x_NS)) < len(members_MS)
    fold_N = np.concatenate([_folds(len(part), rng) for part in (members_MS, others_US)])
    return _split(_scores(x_NS, is_member_N, fold_N), len(members_MS))


def attack_on_pairs(ones_NS: Floats, others_NS: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The same of two models' answers to the same N items: an item's two answers are in one fold, or one would tell the other.

    Raises:
        ValueError: fewer than ten items.
    """
    if len(ones_NS) < FOLDS or len(ones_NS) != len(others_NS):
        raise ValueError(f"expected at least {FOLDS} items answered by both, got {len(ones_NS)} and {len(others_NS)}")
    fold_N = _folds(len(ones_NS), rng)
    x_NS = np.concatenate([ones_NS, others_NS])
    scores_N = _scores(x_NS, np.arange(len(x_NS)) < len(ones_NS), np.concatenate([fold_N, fold_N]))
    return _split(scores_N, len(ones_NS))


def _folds(n: int, rng: np.random.Generator) -> Floats:
    fold_N = np.empty(n)
    for fold, (_, rows) in enumerate(KFold(FOLDS).split(np.empty(n))):
        fold_N[rows] = fold
    return np.asarray(rng.permutation(fold_N))


def _scores(x_NS: Floats, is_member_N: np.ndarray, fold_N: Floats) -> Floats:
    if not np.isfinite(x_NS).all():
        raise ValueError("expected finite signals")
    x_NS, scores_N = normal_scores(x_NS), np.empty(len(x_NS))
    for fold in range(FOLDS):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        model.fit(x_NS[fold_N != fold], is_member_N[fold_N != fold])
        scores_N[fold_N == fold] = model.decision_function(x_NS[fold_N == fold])
    return scores_N


def normal_scores(x_NS: Floats) -> Floats:
    """(N, S) normal quantiles of each signal's ranks; equal values have equal ones. Blind to who is a member.

    Source: Blom 1958, "Statistical Estimates and Transformed Beta-Variables", with c = 1/2.
    """
    scores_NS: Floats = norm.ppf((rankdata(x_NS, axis=0) - 0.5) / len(x_NS))
    return scores_NS


def _split(scores_N: Floats, first: int) -> tuple[Floats, Floats]:
    return scores_N[:first], scores_N[first:]
