"""The service's benchmark on tiny numbers: each part measures a real server, and says what went wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import bench_service
from tests.benchmarks.service import downloads
from tests.benchmarks.service.load import quantile

TINY = bench_service.Size(
    rate=20,
    seconds=1,
    entries=800,
    pages=2,
    listeners=4,
    followed=2,
    events=2,
    patience=20,
    megabytes=2,
    rounds=1,
    claims=1,
    steps=1,
)
ALONE = {"claim_embedded_seconds", "claim_production_seconds"}
ALONE |= {"first_step_embedded_seconds", "first_step_production_seconds", "service_share"}


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    told: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def test_one_server_answers_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_service.measured(TINY, [*bench_service.SHARED], Path("/tmp"))
    told = figures(capsys)
    assert bench_service.TARGETS.keys() - ALONE <= told.keys()
    assert (told["post_errors"], told["post_count"], told["sse_delivered_share"]) == (0, 20, 1.0)
    assert told["targets"]["rss_mb"] == 250.0  # type: ignore[index]
    pages = [name for name in told if name.startswith("page_") and name.count("_") > 2]
    assert len(pages) == 17


@pytest.mark.slow
def test_a_request_is_claimed_in_both_modes(capsys: pytest.CaptureFixture[str]) -> None:
    bench_service.measured(TINY, ["claims"], Path("/tmp"))
    told = figures(capsys)
    assert all(0 < told[f"claim_{mode}_seconds"] <= told[f"journey_{mode}_seconds"] for mode in ("embedded", "production"))  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_engine_steps_in_both_modes(capsys: pytest.CaptureFixture[str]) -> None:
    bench_service.measured(TINY, ["steps"], Path("/tmp"))
    told = figures(capsys)
    assert all(told[f"first_step_{mode}_seconds"] > 1 for mode in ("embedded", "production"))  # type: ignore[operator]
    assert 0 < told["service_share"] < 1  # type: ignore[operator]


def test_a_download_that_is_cut_short_is_no_figure(tmp_path: Path) -> None:
    part, whole = tmp_path / "part", tmp_path / "whole"
    part.write_bytes(b"x" * 10)
    whole.write_bytes(b"x" * 11)
    with downloads.plain(part) as url, pytest.raises(RuntimeError, match="10 of 11"):
        downloads.fetched(url, "/", whole)


def test_the_worst_of_few_is_their_p99() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert quantile(list(map(float, range(1000))), 0.99) == 990.0
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)
