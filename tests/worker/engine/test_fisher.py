"""Fisher information: against the plain definition, additive over classes, kept for the next request and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.unlearning_job import begin, make_job, make_spec, memory_for, params_of, write_spec
from worker.engine import fisher
from worker.engine.distributed import Ranks
from worker.engine.errors import Diverged, OutOfMemory
from worker.engine.files import sha256_of
from worker.engine.fisher import Settings, cache_key, forget_and_retain
from worker.engine.run import Run

EVERYTHING = 11
"""Training images of a class in the striped data: 12, one of them held out."""


def made(root: Path, **changes: Any) -> Run:
    run: Run = begin(make_job(root, method="gradient_ascent", **changes)).run  # type: ignore[attr-defined]
    return run


def obvious(run: Run, classes: list[int]) -> list[torch.Tensor]:
    """Mean over all training images of the classes of the squared gradient of one image's loss, with the table's noise."""
    total = [torch.zeros_like(p) for p in run.parameters]
    count = 0
    for k in classes:
        stream = fisher._everything(run, [k])
        for planned in fisher._Task(run, stream, Settings("per_sample", 16, EVERYTHING)).batches():
            batch = run.plain(planned.index_B, planned.source)
            loss = run.family.loss(batch.x_BCHW, batch.y_B, batch.draw)[0]
            for t, g in zip(total, torch.autograd.grad(loss, run.parameters), strict=True):
                t += g**2
            count += 1
    return [t / count for t in total]


def close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    scale = max(float(x.abs().max()) for x in b)
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-7 * scale) for x, y in zip(a, b, strict=True))


def test_per_sample_information_is_the_mean_squared_gradient_of_single_images(tmp_path: Path) -> None:
    run = made(tmp_path, forget_classes=(1,))
    forget, retain = forget_and_retain(run, Settings("per_sample", 16, EVERYTHING))
    assert close(forget, obvious(run, [1]))
    assert close(retain, obvious(run, [0, 2, 3]))


def test_all_information_is_the_mix_of_what_is_forgotten_and_what_is_retained(tmp_path: Path) -> None:
    run = made(tmp_path, forget_classes=(1, 2))
    forget, retain = forget_and_retain(run, Settings("per_sample", 16, EVERYTHING))
    everything = obvious(run, [0, 1, 2, 3])
    assert close([(f + r) / 2 for f, r in zip(forget, retain, strict=True)], everything)  # two classes of four


def test_the_squared_gradient_of_a_batch_is_not_the_mean_of_squares(tmp_path: Path) -> None:
    run = made(tmp_path)
    single, _ = forget_and_retain(run, Settings("per_sample", 4, 8))
    whole, _ = forget_and_retain(run, Settings("class_batch", 4, 8))
    assert not close(whole, single)


def test_a_second_request_on_the_same_weights_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("class_batch", 4, 8)
    run = made(tmp_path, forget_classes=(1,))
    first = forget_and_retain(run, settings)
    monkeypatch.setattr(fisher, "_gradients", lambda *_: pytest.fail("measured again"))
    again = forget_and_retain(run, settings)
    assert all(torch.equal(a, b) for pair in zip(first, again, strict=True) for a, b in zip(*pair, strict=True))
    write_spec_for(tmp_path, forget_classes=(2, 3))
    other = begin(run_job(tmp_path)).run  # type: ignore[attr-defined]
    forget, _ = forget_and_retain(other, settings)
    assert not torch.equal(forget[0], first[0][0])


def run_job(root: Path) -> Any:
    from worker.contract import JobDirectory

    return JobDirectory(root)


def write_spec_for(root: Path, **changes: Any) -> None:
    write_spec(run_job(root), method="gradient_ascent", **changes)


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": Settings("class_batch", 4, 9)},
        {"settings": Settings("per_sample", 4, 8)},
        {"settings": Settings("class_batch", 4, 8, clip=1.0)},
        {"base_digest": "0" * 64},
        {"params": params_of("gradient_ascent") | {"precision": "bf16"}},
    ],
)
def test_a_table_serves_only_what_it_was_made_of(tmp_path: Path, changed: dict[str, Any]) -> None:
    run = made(tmp_path)
    settings = Settings("class_batch", 4, 8)
    before = cache_key(run, settings, 4)
    if "settings" in changed:
        after = cache_key(run, changed["settings"], 4)
    else:
        write_spec_for(tmp_path, **changed)
        after = cache_key(begin(run_job(tmp_path)).run, settings, 4)  # type: ignore[attr-defined]
    assert before != after


def test_a_table_of_single_images_does_not_depend_on_a_batch_size(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert cache_key(run, Settings("per_sample", 4, 8), 4) == cache_key(run, Settings("per_sample", 16, 8), 4)


def test_a_table_serves_only_where_sums_round_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = made(tmp_path), Settings("class_batch", 4, 8)

    def key_of(ranks: Ranks, threads: int) -> str:
        run.ranks = ranks
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return cache_key(run, settings, 4)

    cpu, other = torch.device("cpu"), torch.device("meta")
    usual = Ranks(0, 1, cpu)
    assert len({key_of(usual, 1), key_of(Ranks(0, 2, cpu), 1), key_of(Ranks(0, 1, other), 1), key_of(usual, 2)}) == 4


def test_a_table_serves_only_classes_of_the_same_names(tmp_path: Path) -> None:
    # An image folder's classes are numbered by their names, and prompts, which the labels are, may stay as they were.
    run, keys = made(tmp_path), []
    for names in (("a", "b", "c", "d"), ("b", "a", "c", "d")):
        run.spec = make_spec(run_job(tmp_path), family="stable_diffusion", class_names=names, prompts=("P", "Q", "R", "S"))
        keys.append(cache_key(run, Settings("class_batch", 4, 8), 4))
    assert keys[0] != keys[1]


def numbers(change: str, fisher_GP: torch.Tensor) -> torch.Tensor:
    """What no measurement leaves."""
    if change == "dtype":
        return fisher_GP.double()
    if change == "shape":
        return fisher_GP[:, 1:].contiguous()
    fisher_GP[1, 2] = {"nan": float("nan"), "infinite": float("inf"), "negative": -1e-9}[change]
    return fisher_GP


@pytest.mark.parametrize("change", ["dtype", "shape", "nan", "infinite", "negative"])
def test_a_table_that_cannot_have_been_measured_is_measured_again(tmp_path: Path, change: str) -> None:
    settings = Settings("class_batch", 4, 8)
    run = made(tmp_path)
    first = forget_and_retain(run, settings)
    file = run.cache / cache_key(run, settings, 4) / "fisher.safetensors"
    save_file({"fisher_GP": numbers(change, load_file(file)["fisher_GP"])}, file)
    file.with_name("fisher.json").write_text(json.dumps({"sha256": sha256_of(file)}))
    again = forget_and_retain(run, settings)
    assert all(torch.equal(a, b) for pair in zip(first, again, strict=True) for a, b in zip(*pair, strict=True))


def test_how_many_images_a_class_has_is_not_read_from_the_cache(tmp_path: Path) -> None:
    settings = Settings("class_batch", 4, 8)
    run = made(tmp_path)
    first = forget_and_retain(run, settings)
    record = run.cache / cache_key(run, settings, 4) / "fisher.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"counts": [0, 0, 0, 0]}))
    again = forget_and_retain(run, settings)
    assert all(torch.equal(a, b) for pair in zip(first, again, strict=True) for a, b in zip(*pair, strict=True))


def test_information_that_is_not_finite_is_named_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    loss = run.family.loss
    monkeypatch.setattr(run.family, "loss", lambda *given, **options: loss(*given, **options) * float("inf"))
    with pytest.raises(Diverged, match="not finite"):
        forget_and_retain(run, Settings("class_batch", 4, 8))
    assert not run.cache.exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "record"])
def test_a_damaged_table_is_measured_again(tmp_path: Path, damage: str) -> None:
    settings = Settings("class_batch", 4, 8)
    run = made(tmp_path)
    first = forget_and_retain(run, settings)
    folder = run.cache / cache_key(run, settings, 4)
    numbers = folder / "fisher.safetensors"
    content = bytearray(numbers.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        numbers.write_bytes(content)
    elif damage == "truncate":
        numbers.write_bytes(content[:-8])
    else:
        (folder / "fisher.json").write_text("{")
    again = forget_and_retain(run, settings)
    assert all(torch.equal(a, b) for pair in zip(first, again, strict=True) for a, b in zip(*pair, strict=True))


def test_forgotten_samples_are_measured_and_taken_out_of_the_whole(tmp_path: Path) -> None:
    ids = tuple(str(i) for i in range(13, 18))  # five training images of class 1
    run = made(tmp_path, forget_classes=(), forget_samples=ids)
    forget, retain = forget_and_retain(run, Settings("per_sample", 4, EVERYTHING))
    n, n_f = 4 * EVERYTHING, len(ids)
    mixed = [(n_f * f + (n - n_f) * r) / n for f, r in zip(forget, retain, strict=True)]
    everything = obvious(run, [0, 1, 2, 3])
    # Exact but where the rest would be negative: there the clamp makes the mix larger than the whole.
    assert all(bool((m >= e - 1e-6 * e.abs().max()).all()) for m, e in zip(mixed, everything, strict=True))
    exact = sum(int(torch.isclose(m, e, rtol=1e-3).sum()) for m, e in zip(mixed, everything, strict=True))
    assert exact > 0.9 * sum(e.numel() for e in everything)


def test_a_table_too_large_for_a_row_a_class_has_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "LARGEST_TABLE", 1)
    run = made(tmp_path, forget_classes=(1,))
    forget, _ = forget_and_retain(run, Settings("per_sample", 4, EVERYTHING))
    assert all(bool(torch.isfinite(f).all()) and bool((f >= 0).all()) for f in forget)
    assert (run.cache / cache_key(run, Settings("per_sample", 4, EVERYTHING), 1)).is_dir()


@pytest.mark.parametrize("kind", ["class_batch", "per_sample"])
def test_one_row_for_all_says_what_a_row_a_class_says(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(kind, 4, 8)
    run = made(tmp_path, family="classifier", forget_classes=(1,))
    by_class = forget_and_retain(run, settings)
    monkeypatch.setattr(fisher, "LARGEST_TABLE", 1)
    in_one = forget_and_retain(run, settings)
    # Other images of the same classes: near, not the same. Mixed batches would see 0.4 of it.
    for a, b in zip(by_class, in_one, strict=True):
        assert mass(a) == pytest.approx(mass(b), rel=0.2)


def mass(tensors: list[torch.Tensor]) -> float:
    return sum(float(t.sum()) for t in tensors)


def test_what_is_retained_of_single_items_is_what_their_own_measure_says(tmp_path: Path) -> None:
    """A third of every class is forgotten at random: both parts are alike, so their information must be alike.

    Were one measured on mixed batches and the other on pure ones, this would be off by a third.
    """
    ids = tuple(str(12 * k + i) for k in range(4) for i in (1, 4, 7, 10))
    run = made(tmp_path, family="classifier", forget_classes=(), forget_samples=ids)
    settings = Settings("class_batch", 4, EVERYTHING)
    _, retain = forget_and_retain(run, settings)
    (direct,) = fisher._measure(run, [fisher._Task(run, run.retain, settings)], settings)
    assert mass(retain) == pytest.approx(float(direct.sum()), rel=0.2)


def test_batches_of_one_class_see_a_gradient_that_mixed_ones_do_not(tmp_path: Path) -> None:
    run = made(tmp_path, forget_classes=(1, 2))
    pure, _ = forget_and_retain(run, Settings("class_batch", 8, 8))
    plan = fisher._Task(run, run.forget, Settings("class_batch", 8, 8)).batches()
    assert [run.dataset.labels_N[p.index_B].unique().tolist() for p in plan] == [[1], [2]]
    assert sum(p.weight for p in plan) == pytest.approx(1.0)
    assert mass(pure) > 0


def test_a_class_weighs_as_many_images_as_it_has(tmp_path: Path) -> None:
    ids = ("1", "13", "14", "15")  # one image of class 0, three of class 1
    run = made(tmp_path, forget_classes=(), forget_samples=ids)
    plan = fisher._Task(run, run.forget, Settings("per_sample", 1, 2)).batches()
    assert [p.weight for p in plan] == pytest.approx([1 / 4, 3 / 8, 3 / 8])  # two of the three are looked at


def test_the_published_protocol_takes_all_images_in_mixed_batches(tmp_path: Path) -> None:
    run = made(tmp_path, forget_classes=(1, 2))
    plan = fisher._Task(run, run.retain, Settings("batch", 8, 1_000)).batches()
    assert sorted(torch.cat([p.index_B for p in plan]).tolist()) == sorted(run.retain.indices_N.tolist())
    assert [len(p.index_B) for p in plan] == [8, 8, 6]
    assert [p.weight for p in plan] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("kind", ["class_batch", "batch"])
def test_a_batch_that_does_not_fit_is_halved_and_still_squared_as_one(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(kind, 8, 8, clip=0.5, loss_scale=3.0)
    whole = forget_and_retain(made(tmp_path / "large"), settings)
    run = made(tmp_path / "small")
    seen = memory_for(5, run, monkeypatch)
    cut = forget_and_retain(run, settings)
    assert max(seen) == 4
    assert run.gradients.micro is None  # updates take other memory, and the same on every rank
    assert all(close(a, b) for a, b in zip(cut, whole, strict=True))


def test_one_image_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    memory_for(0, run, monkeypatch)
    with pytest.raises(OutOfMemory, match="expected at least one to fit"):
        forget_and_retain(run, Settings("class_batch", 4, 8))
