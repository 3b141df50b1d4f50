"""Precision, recall, density and coverage: ours for resamples, and the authors' package for the figures."""

from __future__ import annotations

import numpy as np
import pytest

from worker.engine import manifolds
from worker.engine.manifolds import MEASURES, Overlap, figures, radii


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 3)), rng.normal(0.7, 0.8, size=(50, 3))


def slow(real: np.ndarray, drawn: np.ndarray, k: int) -> dict[str, float]:
    def width(rows: np.ndarray, i: int) -> float:
        return sorted(float(np.linalg.norm(rows[i] - other)) for j, other in enumerate(rows) if j != i)[k - 1]

    near = [[float(np.linalg.norm(r - d)) for d in drawn] for r in real]
    wide_real = [width(real, i) for i in range(len(real))]
    wide_drawn = [width(drawn, j) for j in range(len(drawn))]
    inside = [[near[i][j] < wide_real[i] for j in range(len(drawn))] for i in range(len(real))]
    return {
        "precision": sum(any(row[j] for row in inside) for j in range(len(drawn))) / len(drawn),
        "recall": sum(any(near[i][j] < wide_drawn[j] for j in range(len(drawn))) for i in range(len(real))) / len(real),
        "density": sum(map(sum, inside)) / k / len(drawn),
        "coverage": sum(any(row) for row in inside) / len(real),
    }


@pytest.mark.parametrize("k", [1, 5])
def test_figures_and_the_overlap_are_what_the_paper_defines(sets: tuple[np.ndarray, np.ndarray], k: int) -> None:
    due = slow(*sets, k)
    assert 0 < due["coverage"] < 1
    assert figures(*sets, k) == pytest.approx(due)
    once = Overlap.of(*sets, k).resampled(np.ones((1, 60)), np.ones((1, 50)))
    assert {name: float(once[name][0]) for name in MEASURES} == pytest.approx(due)


def test_resample_counts_items_as_often_as_they_are_in_it(sets: tuple[np.ndarray, np.ndarray]) -> None:
    real, drawn = sets
    overlap, rng = Overlap.of(real, drawn), np.random.default_rng(1)
    real_RN, drawn_RM = manifolds.draws(rng, 3, 60), manifolds.draws(rng, 3, 50)
    assert real_RN.sum(axis=1).tolist() == [60, 60, 60]
    came = overlap.resampled(real_RN, drawn_RM)
    for r in range(3):
        rows = np.repeat(np.arange(60), real_RN[r].astype(int))
        columns = np.repeat(np.arange(50), drawn_RM[r].astype(int))
        part = overlap.in_real_NM[np.ix_(rows, columns)]
        assert came["coverage"][r] == pytest.approx(part.any(axis=1).mean())
        assert came["precision"][r] == pytest.approx(part.any(axis=0).mean())
        assert came["density"][r] == pytest.approx(part.sum(axis=0).mean() / 5)
        assert came["recall"][r] == pytest.approx(overlap.in_drawn_NM[np.ix_(rows, columns)].any(axis=1).mean())


def test_radius_is_to_the_kth_other_item() -> None:
    assert radii(np.array([[0.0], [1.0], [3.0], [7.0]]), 2).tolist() == [3.0, 2.0, 3.0, 6.0]


def test_nothing_is_printed(sets: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    figures(*sets)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("spoil", [lambda rows: rows[:6], lambda rows: np.where(rows > 1, np.nan, rows)])
def test_too_few_items_or_none_that_are_numbers_are_refused(sets: tuple[np.ndarray, np.ndarray], spoil: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        figures(sets[0], spoil(sets[1]))  # type: ignore[operator]
    with pytest.raises(ValueError, match="expected"):
        Overlap.of(spoil(sets[0]), sets[1])  # type: ignore[operator]
