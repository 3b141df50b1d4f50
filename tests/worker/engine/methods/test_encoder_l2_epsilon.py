"""The bound: a direction that keeps it, phases that find its range, and a result on the edge of what is possible.

On a quadratic toy the best retained loss under every bound is known:

    f1 = (theta + theta_0)' H1 (theta + theta_0),   f2 = (theta - theta_0)' H2 (theta - theta_0)
    min f2 where f1 <= eps:   (H2 + lambda H1) theta = (H2 - lambda H1) theta_0 at the lambda where f1 = eps

Letters: P weights, N images of each of the two sets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.worker.engine.unlearning_job import ONE_RANK, PAIRS, begin, make_job, params_of
from worker.engine.errors import Diverged
from worker.engine.events import Events
from worker.engine.family import Draw
from worker.engine.methods.encoder_l2_epsilon import EncoderL2Epsilon, EncoderL2EpsilonParams, Phases, dot, multiplier
from worker.engine.run import Run
from worker.engine.streams import Stream

every = pytest.mark.parametrize("family", [family for name, family in PAIRS if name == "encoder_l2_epsilon"])

# ---------------------------------------------------------------------------------------------------------- the direction


def gradients(seed: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, generator=source), torch.randn(4, generator=source)]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


@pytest.mark.parametrize("rate", [-0.5, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_sum_descends_the_bound_objective_at_the_rate_with_the_shortest_change(rate: float, seed: int) -> None:
    free, bound = gradients(seed), gradients(seed + 100)
    eta = float(multiplier(free, bound, rate))
    one, other = flat(free), flat(bound)
    psi = rate * float(other @ other)
    along = float((one + eta * other) @ other)
    assert eta >= 0
    assert along >= psi - 1e-5
    if float(one @ other) >= psi:
        assert eta == 0  # it does so already, and is left alone
    else:
        assert along == pytest.approx(psi, abs=1e-5)  # no more is added than it takes


def test_what_has_no_gradient_adds_nothing_and_a_nan_is_not_hidden() -> None:
    free, bound = gradients(1), gradients(2)
    assert float(multiplier(free, [torch.zeros_like(t) for t in bound], 1.0)) == 0
    assert float(multiplier([torch.zeros_like(t) for t in free], bound, 1.5)) == pytest.approx(1.5)
    for broken in (0, 1):
        pair = [[t.clone() for t in free], [t.clone() for t in bound]]
        pair[broken][1][0] = float("nan")
        assert math.isnan(float(multiplier(*pair, 1.0)))


def test_the_product_is_over_all_parameters() -> None:
    a, b = gradients(3), gradients(4)
    assert float(dot(a, b)) == pytest.approx(float(flat(a) @ flat(b)), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------- the phases


@pytest.mark.parametrize(
    ("iterations", "share", "each"), [(3, 0.5, 1), (3, 0.99, 1), (10, 0.5, 2), (1000, 0.5, 250), (7, 0.9, 3)]
)
def test_every_phase_has_an_update(iterations: int, share: float, each: int) -> None:
    phases = Phases.of(iterations, share)
    numbers = [phases.number(i) for i in range(iterations)]
    assert numbers == [0] * each + [1] * each + [2] * (iterations - 2 * each)
    assert set(numbers) == {0, 1, 2}
    assert [phases.length(k) for k in range(3)] == [numbers.count(k) for k in range(3)]
    assert all(numbers.index(k) == phases.begin(k) for k in range(3))


def test_an_end_is_the_mean_over_the_last_quarter_of_its_phase() -> None:
    phases = Phases.of(20, 0.8)  # 8, 8 and 4
    assert [i for i in range(20) if phases.counts(i)] == [6, 7, 14, 15]
    assert [i for i in range(3) if Phases.of(3, 0.5).counts(i)] == [0, 1]


# --------------------------------------------------------------------------------------------------------- a quadratic toy

P, N = 3, 8
RATE = 0.1
NUMBERS = torch.Generator().manual_seed(4)
X_2NP = torch.randn(2 * N, P, generator=NUMBERS)
"""The images, forgotten ones (label 0) first."""
X_2NP[N:, 2] = 0  # a weight that no retained image needs: what hangs on it can be forgotten for nothing
START_P = torch.tensor([1.0, -1.5, 0.8])
H1 = X_2NP[:N].T @ X_2NP[:N] / N
H2 = X_2NP[N:].T @ X_2NP[N:] / N


class Line(nn.Linear):
    """theta, and a teacher as a network in halves makes one."""

    def teacher(self) -> Line:
        return copy.deepcopy(self).eval().requires_grad_(False)


class Toy:
    """The tap of an image is x·theta. What is shown in place of a forgotten image is its negative."""

    def __init__(self) -> None:
        self.module = Line(P, 1, bias=False)
        self.module.weight.data.copy_(START_P)

    def draw(self, count: int, image_shape: Sequence[int], generator: torch.Generator, **options: Any) -> Draw:
        return Draw({})

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        return held_B

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, scope: str) -> None:
        return None

    def question(self, x_BP: Tensor, y_B: Tensor, draw: Draw, *, noise_in: str | None = None) -> tuple[Tensor]:
        return (x_BP if noise_in is None else -x_BP,)

    def encode(self, question: tuple[Tensor], *, module: nn.Module | None = None) -> list[Tensor]:
        return [(module or self.module)(*question)]


def begun(root: Path, **changes: Any) -> EncoderL2Epsilon:
    """Plain gradient steps on whole sets."""
    given = {
        "algorithm": "sgd", "momentum": 0.0, "learning_rate": RATE, "decay": "cosine", "iterations": 200,
        "phase_one_share": 0.5, "phase_two_rate": 0.1,
    }  # fmt: skip
    params = EncoderL2EpsilonParams.model_validate({"precision": "fp32", "batch_size": N, **given, **changes})
    labels_2N, family = torch.arange(2 * N) // N, Toy()
    run = Run(
        spec=SimpleNamespace(class_names=("gone", "kept"), retain_classes=(1,)),  # type: ignore[arg-type]
        params=params,
        family=family,  # type: ignore[arg-type]
        dataset=SimpleNamespace(image_shape=(1, 1, P)),  # type: ignore[arg-type]
        ranks=ONE_RANK,
        forget=Stream("forget", 1, torch.arange(N), labels_2N[:N]),
        retain=Stream("retain", 1, torch.arange(N, 2 * N), labels_2N[N:]),
        module=family.module,
        held_N=X_2NP,
        labels_N=labels_2N,
        events=Events(root / "events.jsonl", "test", speaks=False),
        cache=root,
    )
    method = EncoderL2Epsilon(params, run)
    method.prepare()
    return method


def theta(method: EncoderL2Epsilon) -> Tensor:
    (weight,) = method.run.parameters
    return weight.detach().flatten()


def f1(theta_P: Tensor) -> float:
    return float((theta_P + START_P) @ H1 @ (theta_P + START_P))


def f2(theta_P: Tensor) -> float:
    return float((theta_P - START_P) @ H2 @ (theta_P - START_P))


def best(weight: float) -> Tensor:
    """(P,) where the sum f2 + weight f1 is smallest: each is the best of its f1."""
    return torch.linalg.solve(H2 + weight * H1, (H2 - weight * H1) @ START_P)


def best_under(eps: float) -> Tensor:
    """(P,) the smallest f2 where f1 is eps, by halving the interval of log(weight)."""
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f1(best(math.exp(middle))) > eps else (low, middle)
    return best(math.exp(low))


def test_the_ends_are_the_least_of_either_distance(tmp_path: Path) -> None:
    method = begun(tmp_path)
    for i in range(method.phases.begin(1)):
        method.step(i)
    forgetful = theta(method).clone()
    for i in range(method.phases.begin(1), method.phases.begin(2)):
        method.step(i)
    low, high = method.ends.tolist()
    assert low == pytest.approx(f1(forgetful), abs=0.2)
    assert low < 0.01 * f1(START_P)  # at theta = -theta_0 nothing is left of the forgotten images' distance
    assert f2(theta(method)) < 0.05 * f2(forgetful)
    assert low < high < f1(START_P)
    assert float(theta(method)[2]) < 0.5 * float(
        START_P[2]
    )  # the weight that no retained image needs was forgotten for nothing


def test_every_end_is_looked_for_from_the_weights_as_they_came(tmp_path: Path) -> None:
    method = begun(tmp_path)
    again = method.phases.begin(1)
    for i in range(again):
        method.step(i)
    assert f2(theta(method)) > 1.0
    method.step(again)
    step = theta(method) - START_P  # no retained gradient there, so the first step is down f1 alone
    assert torch.allclose(step, -RATE * 4 * H1 @ START_P, atol=1e-5)


def test_the_result_is_the_best_that_its_bound_allows_and_the_ratio_moves_it(tmp_path: Path) -> None:
    ends = []
    for ratio in (0.2, 0.7):
        method = begun(tmp_path, epsilon_ratio=ratio)
        for i in range(200):
            method.step(i)
        eps, found = float(method.bound()), theta(method)
        low, high = method.ends.tolist()
        assert eps == pytest.approx(low + ratio * (high - low))
        assert f1(found) == pytest.approx(eps, rel=0.01)
        assert f2(found) == pytest.approx(f2(best_under(eps)), rel=0.01)
        ends.append((f1(found), f2(found)))
    (less, worse), (more, better) = ends
    assert less < more  # a larger ratio forgets less
    assert worse > better  # and retains more


def test_a_forgotten_loss_that_is_not_finite_stops_the_run_though_its_gradient_is(tmp_path: Path) -> None:
    method = begun(tmp_path)
    rows = method.lesson.as_target
    method.lesson.as_target = lambda batch, module: tuple(t + float("inf") for t in rows(batch, module))  # type: ignore[method-assign]
    before = theta(method).clone()
    with pytest.raises(Diverged) as caught:
        method.step(2)
    assert caught.value.step == 2
    assert torch.equal(theta(method), before)


def test_micro_batches_make_the_same_steps(tmp_path: Path) -> None:
    results = []
    for micro in (None, 3):
        method = begun(tmp_path, iterations=12)
        method.run.gradients.micro = micro
        for i in range(12):
            method.step(i)
        results.append(theta(method).clone())
    assert torch.allclose(*results, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- whole networks


def job_method(root: Path, family: str, *, prepare: bool = True, **params: object) -> Any:
    asked = params_of("encoder_l2_epsilon", family) | params
    return begin(make_job(root, method="encoder_l2_epsilon", family=family, params=asked), prepare=prepare)


@every
def test_every_update_keeps_to_its_rate(family: str, tmp_path: Path) -> None:
    """Of the gradient that the optimizer gets, whichever the phase."""
    method = job_method(tmp_path, family, iterations=9, learning_rate=3e-3, phase_two_rate=2.0)
    run, phases, seen = method.run, method.phases, []
    descend = run.descend

    def watch(parts: Any, optimizer: Any, *, edit: Any, **options: Any) -> None:
        def both(g2: list[Tensor]) -> None:
            seen.append([t.clone() for t in g2])
            edit(g2)
            seen.append([t.clone() for t in g2])

        descend(parts, optimizer, edit=both, **options)

    run.descend = watch
    for i in range(9):
        loss, g1 = method._forgotten(i) if i != phases.begin(1) else (None, None)  # there the weights are put back first
        method.step(i)
        g2, g = seen[-2:]
        if g1 is None:
            continue
        if phases.number(i) == 1:
            assert float(dot(g, g2)) >= float(dot(g2, g2)) * (1 - 1e-4)
        else:
            rate = 1.0 if phases.number(i) == 0 else method.params.phase_two_rate * float(loss - method.bound())
            assert float(dot(g, g1)) >= rate * float(dot(g1, g1)) - 1e-4 * abs(float(dot(g1, g1)))


@every
def test_the_encoder_is_put_back_before_the_second_end(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, iterations=8)
    for i in range(method.phases.begin(1)):
        method.step(i)
    batch, module = method.lesson.retain_batch(0), method.run.module
    assert bool((method.lesson.as_taught(batch, module)[0] > 0).all())
    method._begin(1)
    assert method.lesson.as_taught(batch, module)[0].tolist() == [0.0] * 8
    assert not method.optimizer.state


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_run_that_is_resumed_in_any_phase_has_the_same_bits(at: int, tmp_path: Path) -> None:
    results = []
    for folder in ("whole", "broken"):
        method = job_method(tmp_path / folder, "mae")
        for i in range(6):
            if folder == "broken" and i == at:
                weights = {k: t.clone() for k, t in method.run.family.module.state_dict().items()}
                state = copy.deepcopy(method.state_dict())
                method = job_method(tmp_path / "again", "mae", prepare=False)
                method.run.family.module.load_state_dict(weights)
                method.load_state_dict(state)
            method.step(i)
        results.append({k: t.clone() for k, t in method.run.family.module.state_dict().items()})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
