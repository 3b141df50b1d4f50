"""The benchmark on tiny numbers: what it measures is real, and what it cannot show it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import text

from service import db
from service.audit import repository
from service.verifier import entries
from service.verifier import ledger as verifier
from tests.benchmarks import bench_ledger, told
from tests.benchmarks.ledger import appends, history, places

TINY = bench_ledger.Size(appends=8, requests=8, past=8, entries=600, megabytes=1, rounds=1)
COUNTED = {key for key in bench_ledger.TARGETS if "per_second" in key}


def test_every_part_ends_in_figures_for_its_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_ledger.measured(TINY, ["million", "signing"], tmp_path)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert bench_ledger.TARGETS.keys() - COUNTED <= figures.keys()
    assert {"cores", "machine", "python", "load_before", "load_after"} <= figures.keys()
    assert all(figures[key] > 0 for key in bench_ledger.TARGETS.keys() - COUNTED)


def test_writers_append_what_they_are_told_to(database: str, tmp_path: Path) -> None:
    """Two processes: 50 or fewer to get warm, then one round; a request leaves one entry, too."""
    counted = appends.rates(tmp_path, {"append": 6, "post": 4}, writers=2, rounds=1)
    assert counted.keys() == {"append", "post"}
    assert all(rate > 0 for rate in counted.values())
    with db.reading() as session:
        assert repository.size(session) == 2 * (6 + 4)


def test_the_better_number_of_writers_counts_and_both_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def nowhere(_name: str, base: Path) -> Iterator[Path]:
        yield base

    def rates(_folder: Path, counts: dict[str, int], writers: int, _rounds: int) -> dict[str, float]:
        return {kind: {1: 7.0, 4: 5.0}[writers] for kind in counts}

    monkeypatch.setattr(bench_ledger, "database", nowhere)
    monkeypatch.setattr(bench_ledger, "syncs", lambda disk: places.syncs(disk, count=3))
    monkeypatch.setattr(appends, "rates", rates)
    monkeypatch.setattr(appends, "settle", lambda count: None)
    figures = bench_ledger.of_appends(TINY, tmp_path)
    assert {*COUNTED, *(f"{key}_memory" for key in COUNTED)} <= figures.keys()
    assert {figures[key] for key in COUNTED} == {7.0}
    assert figures["append_per_second_postgresql_by_4"] == 5.0
    assert figures["disk_appends_per_second"] > 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_commit_waits_for_the_disk_as_in_production(kind: str) -> None:
    """Nothing is switched off for speed."""
    asked = {"sqlite": {"PRAGMA synchronous": "2"}, "postgresql": {"SHOW fsync": "on", "SHOW synchronous_commit": "on"}}
    with places.database(kind, places.MEMORY), db.transaction() as session:
        for question, answer in asked[kind].items():
            assert str(session.execute(text(question)).scalar_one()) == answer


def test_a_missed_target_is_said_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(bench_ledger.TARGETS, 1.0)  # too few a second: four; all others within their limits
    assert told.concluded(figures, bench_ledger.TARGETS, complete=True) == 4
    *table, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table if line.endswith("MISSED")] == [k for k in bench_ledger.TARGETS if k in COUNTED]
    assert json.loads(last) == figures
    assert told.concluded({}, bench_ledger.TARGETS, complete=True) == len(bench_ledger.TARGETS)


def test_the_million_entries_are_those_of_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains, times, private rows and root hold: the verifier reads every line, and none of them as a stranger's."""
    read: list[bytes] = []
    unjson = verifier.unjson
    monkeypatch.setattr(verifier, "unjson", lambda data: read.append(data) or unjson(data))
    home = history.exported(tmp_path, 600)
    report = verifier.verify_ledger(home, tmp_path / "policy")
    assert (report.status, report.facts["entries"], report.facts["requests"]) == (0, 600, 75)
    assert len(read) == 75 + 1  # private rows and the manifest: each entry's line was the very bytes that its text asks for


def test_entries_differ_and_are_canonical() -> None:
    some = list(history.entries(17))
    assert len({one.leaf for one in some}) == 17
    for one, after in pairwise(some):
        said = entries.opened(after.leaf)["request"]
        assert said["prev"] == (one.leaf_hash.hex() if said["ordinal"] else None)
