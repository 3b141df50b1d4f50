"""Scores of forgetting single items: accuracies, membership inference and divergence, beside a retrained model's.

Source: the protocol of Huang et al. 2024 (SFR-on), arXiv:2409.19732, table for CIFAR-10 with 10 % forgotten: a class-balanced
logistic regression on the entropy of the prediction tells training from test images; MIA is the share of forgotten items it
takes for training images. Shapes: N items, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """A model's logits (N, K) on the three sets, and the labels (N,)."""

    forget: tuple[Tensor, Tensor]
    retain: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def entropy(logits_NK: Tensor) -> np.ndarray:
    """(N, 1) of the softmax, in nats."""
    log_NK = logits_NK.double().log_softmax(1)
    return (-(log_NK.exp() * log_NK).sum(1, keepdim=True)).numpy()


def attack(answers: Answers) -> float:
    """Percent of the forgotten items that the attack takes for members."""
    member, outsider = entropy(answers.retain[0]), entropy(answers.test[0])
    features = np.concatenate([member, outsider])
    labels = np.concatenate([np.ones(len(member)), np.zeros(len(outsider))])
    model = LogisticRegression(class_weight="balanced", solver="lbfgs", max_iter=1000).fit(features, labels)
    return 100 * float(model.predict(entropy(answers.forget[0])).mean())


def divergence(retrained_NK: Tensor, unlearned_NK: Tensor) -> float:
    """Mean KL(retrained ‖ unlearned) of the softmaxes, in nats."""
    a_NK, b_NK = retrained_NK.double().log_softmax(1), unlearned_NK.double().log_softmax(1)
    return float((a_NK.exp() * (a_NK - b_NK)).sum(1).mean())


def accuracy(pair: tuple[Tensor, Tensor]) -> float:
    """Percent."""
    logits_NK, labels_N = pair
    return 100 * float((logits_NK.argmax(1) == labels_N).float().mean())


def scores(answers: Answers, retrained: Answers) -> dict[str, float]:
    """FA, RA, TA and MIA in percent, KL to the retrained model on the forgotten items, and the mean gap of the four."""
    own = {
        "forget_accuracy": accuracy(answers.forget),
        "retain_accuracy": accuracy(answers.retain),
        "test_accuracy": accuracy(answers.test),
        "mia": attack(answers),
    }
    other = {
        "forget_accuracy": accuracy(retrained.forget),
        "retain_accuracy": accuracy(retrained.retain),
        "test_accuracy": accuracy(retrained.test),
        "mia": attack(retrained),
    }
    gap = float(np.mean([abs(own[name] - other[name]) for name in own]))
    return {**own, "kl": divergence(retrained.forget[0], answers.forget[0]), "average_gap": gap}
