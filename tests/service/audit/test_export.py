"""The export holds the ledger at its newest checkpoint, and is not written where it would not verify."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.audit import export, leaves
from service.audit.export import Inconsistent, Private, Stored
from service.audit.leaves import LOCAL
from service.verifier.ledger import verify_ledger
from service.verifier.merkle import Frontier, leaf_hash
from service.verifier.note import Checkpoint, Note
from tests.service.verifier.ledgers import NOW, Signers, a_request

SIGNERS = Signers()


def entries(count: int) -> list[Any]:
    fact = a_request("r")[1][0]
    made = []
    for seq in range(count):
        text = leaves.leaf(fact, at=NOW, tenant="t", actor=LOCAL, request=None, model_id=None, subject_commitment=None)
        made.append(SimpleNamespace(
            seq=seq, leaf=text, leaf_hash=leaf_hash(text), redacted_by=None, action=fact.action, outcome=fact.outcome, at=NOW,
            tenant="t", actor=str(LOCAL), request_id=None, request_ordinal=None, model_id=None,
        ))  # fmt: skip
    return made


def stored(rows: list[Any], *sizes: int) -> list[Stored]:
    tree, notes = Frontier(), dict[int, str]()
    for size in range(len(rows) + 1):
        notes[size] = SIGNERS.note(size, tree.root())
        tree.append(rows[size].leaf_hash if size < len(rows) else b"")
    return [Stored(size, notes[size], b"token" if size else None) for size in sizes]


def write(folder: Path, rows: Any, checkpoints: list[Stored], **more: Any) -> dict[str, Any]:
    told = {"private": [], "policy": SIGNERS.policy(), "schemas": {}, "created_at": NOW} | more
    return export.write(folder, entries=rows, checkpoints=checkpoints, **told)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 70])
def test_an_export_of_any_size_verifies(tmp_path: Path, size: int) -> None:
    rows = entries(size + 3)
    manifest = write(tmp_path / "x", iter(rows), stored(rows, 0, size, size))
    (tmp_path / "policy").write_text(SIGNERS.policy())
    report = verify_ledger(tmp_path / "x", tmp_path / "policy")
    assert (report.valid, manifest["size"]) == (True, size), report.reason
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path / "x", check=False).returncode == 0
    bundles = sum(1 for p in (tmp_path / "x").glob("tile/entries/**/*") if p.is_file())
    assert bundles == -(-size // 256)


def test_every_checkpoint_is_in_it_and_the_latest_of_the_largest_is_the_newest(tmp_path: Path) -> None:
    rows = entries(5)
    first, large = stored(rows, 2, 5)
    again = Stored(5, SIGNERS.note(5, Checkpoint.parse(Note.parse(large.note).text).root, witnesses=3))
    write(tmp_path / "x", rows, [first, large, first, again])
    names = sorted(p.name for p in (tmp_path / "x/checkpoints").iterdir())
    assert names == ["2-0.note", "2-0.tsr", "2-1.note", "2-1.tsr", "5-0.note", "5-0.tsr", "5-1.note"]
    assert (tmp_path / "x/checkpoint").read_text() == again.note


def test_private_rows_beyond_the_checkpoint_are_left_out_and_say_no_secret(tmp_path: Path) -> None:
    rows = entries(5)
    kept = [Private(1, "ab" * 32, None, "kek"), Private(2, None, NOW), Private(5)]
    write(tmp_path / "x", rows, stored(rows, 5), private=kept)
    assert [json.loads(line) for line in (tmp_path / "x/private.ndjson").read_text().splitlines()] == [
        {"seq": 1, "private_sha256": "ab" * 32, "shredded_at": None, "kek_id": "kek"},
        {"seq": 2, "private_sha256": None, "shredded_at": "2026-11-21T12:00:00.000000Z", "kek_id": None},
    ]


def test_what_would_not_verify_is_not_written_to_its_end(tmp_path: Path) -> None:
    rows = entries(5)
    for wrong in (rows[:4], [rows[0], *rows[2:]], [*rows[:4], SimpleNamespace(**vars(rows[4]) | {"leaf_hash": b"\1" * 32})]):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        with pytest.raises(Inconsistent):
            write(tmp_path / "x", wrong, stored(rows, 5))
        assert not (tmp_path / "x/SHA256SUMS").exists()
    with pytest.raises(FileExistsError):
        write(tmp_path / "x", rows, stored(rows, 5))


def test_entries_are_taken_as_they_come(tmp_path: Path) -> None:
    """None beyond the checkpoint is asked for."""
    rows = entries(9)
    source = iter(rows)
    write(tmp_path / "x", source, stored(rows, 4))
    assert [row.seq for row in islice(source, 1)] == [4]
