from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JobDirectory, Policy
from worker.engine import registry, verify
from worker.engine.errors import Integrity


@pytest.fixture(autouse=True)
def painters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"painter": vj.Painter})


def check(root: Path, spoil: Callable[[Path], None]) -> dict[str, Finding]:
    """Findings by metric after `spoil(out)`, with a manifest that lists whatever lies there then."""
    job = vj.make_job(root, vj.patterns(), policy=Policy(name="p", checks=(Check(verifier="integrity"),)))
    spoil(job.out)
    vj.write_manifest(job)
    report = verify.run(job)
    assert report.verdict == "ERROR"  # whatever it finds: nothing measures the forgetting
    return {f.metric: f for f in report.findings if f.check == "integrity"}


def add(name: str, content: bytes = b"x") -> Callable[[Path], None]:
    def spoil(out: Path) -> None:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)

    return spoil


def resave(pictures: torch.Tensor, **more: torch.Tensor) -> Callable[[Path], None]:
    return lambda out: vj.save_model(out, pictures, **more)


def second_set(out: Path) -> None:
    vj.save_model(out, vj.patterns())
    (out / "ema.safetensors").write_bytes((out / "model.safetensors").read_bytes())


nan = torch.full((vj.K, 1, vj.SIDE, vj.SIDE), float("nan"))


@pytest.mark.parametrize(
    ("spoil", "metrics"),
    [
        pytest.param(lambda out: None, set(), id="intact"),
        pytest.param(add("notes.txt"), {"files_added"}, id="file beside the model"),
        pytest.param(add("data/7.png"), {"files_added", "files_of_other_types"}, id="forget data"),
        pytest.param(add("optimizer.pt"), {"files_added", "files_of_other_types"}, id="optimizer pickle"),
        pytest.param(add(".cache.json"), {"files_added", "files_of_other_types"}, id="hidden file"),
        pytest.param(add("config.json", b'{"side": 9}'), {"texts_changed"}, id="other configuration"),
        pytest.param(lambda out: (out / "config.json").unlink(), {"files_missing"}, id="missing file"),
        pytest.param(second_set, {"files_added", "tensors_repeated"}, id="second set of weights"),
        pytest.param(
            resave(vj.patterns(), **{"exp_avg.pictures": torch.zeros(2)}),
            {"tensors_unlike_parent", "load_errors"},
            id="optimizer state among the weights",
        ),
        pytest.param(resave(vj.patterns().half()), {"tensors_unlike_parent"}, id="other dtype"),
        pytest.param(resave(vj.patterns()[:3]), {"tensors_unlike_parent", "load_errors"}, id="other shape"),
        pytest.param(resave(nan), {"tensors_not_finite", "load_errors"}, id="NaN"),
        pytest.param(
            lambda out: vj.save_model(out, vj.patterns(), metadata={"note": "forgot columns"}),
            {"metadata_added"},
            id="text in the header",
        ),
        pytest.param(
            add("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
            {"weights_unreadable", "tensors_unlike_parent", "load_errors"},
            id="no weights",
        ),
    ],
)
def test_what_spoils_a_checkpoint_is_found_and_named(tmp_path: Path, spoil: Callable[[Path], None], metrics: set[str]) -> None:
    findings = check(tmp_path, spoil)
    assert {m for m, f in findings.items() if f.passed is not True} == metrics


def test_bytes_hidden_behind_the_last_tensor_are_found(tmp_path: Path) -> None:
    def spoil(out: Path) -> None:
        with (out / "model.safetensors").open("ab") as stream:
            stream.write(b"what was forgotten")

    assert check(tmp_path, spoil)["weights_unreadable"].passed is False


def test_offenders_are_named(tmp_path: Path) -> None:
    assert "notes.txt" in check(tmp_path, add("notes.txt"))["files_added"].detail


def test_link_out_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    job: JobDirectory = vj.make_job(tmp_path, vj.patterns())
    (job.out / "more.json").symlink_to(job.spec)
    with pytest.raises(Integrity, match="link"):
        verify.run(job)


def test_model_that_loads_but_cannot_be_drawn_from_does_not_pass_on_integrity_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vj.Painter, "sample", lambda self, y_B, seeds, *, sampling: torch.zeros(0))
    job = vj.make_job(tmp_path, vj.patterns(), policy=Policy(name="p", checks=(Check(verifier="integrity"),)))
    report = verify.run(job)
    assert report.verdict == "ERROR"
    assert [f.check for f in report.findings if f.passed is not True] == ["evidence"]
