"""One ledger for all attacks; each gets a copy of its own. What an attack leaves undetected is counted at the end."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.verifier.ledger import verify_ledger
from service.verifier.reading import GOOD, TAMPERED, Report
from tests.service.verifier.ledgers import Ledger, a_ledger

SIZES = (103, 295, 306)


@dataclass
class Field:
    """A ledger and its honest export, as an auditor got it, and the checkpoint that the auditor has kept."""

    ledger: Ledger
    folder: Path
    export: Path
    policy: Path
    saved: Path

    def verify(self, export: Path | None = None, *, db: bool = False, saved: bool = False, witness_size: int = 0) -> Report:
        kept = [self.saved] if saved else []
        return verify_ledger(export or self.export, self.policy, kept, witness_size, self.ledger.file if db else None)

    def hostile(self, *, hide: int = 0) -> Path:
        """The export that somebody would hand out who owns the file, the newest checkpoints hidden."""
        shutil.rmtree(self.folder / "hostile", ignore_errors=True)
        stored = self.ledger.stored
        return self.ledger.forged_export(self.folder / "hostile", stored[: len(stored) - hide])


def refused(report: Report, named: str) -> None:
    """The attack was seen, and the reason says where."""
    assert report.status == TAMPERED, report
    assert named in report.reason, report.reason


def unseen(report: Report) -> None:
    """A stated limit: nothing in these files gives the attack away."""
    assert report.status == GOOD, report


@pytest.fixture(scope="session")
def original(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    file = tmp_path_factory.mktemp("ledger") / "ledger.db"
    shutil.copy(sqlite_template, file)
    made = a_ledger(file)
    assert [one.size for one in made.stored] == list(SIZES)
    return made


@pytest.fixture
def field(original: Ledger, tmp_path: Path) -> Field:
    """All triggers are dropped: the attacker owns the file."""
    ledger = copy.copy(original)
    ledger.file, ledger.stored = tmp_path / "ledger.db", list(original.stored)
    shutil.copy(original.file, ledger.file)
    ledger.unguard()
    (tmp_path / "policy").write_text(ledger.signers.policy())
    (tmp_path / "saved").write_text(ledger.stored[1].note)
    return Field(ledger, tmp_path, ledger.export(tmp_path / "export"), tmp_path / "policy", tmp_path / "saved")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack: something that must be refused, or is a stated limit")


class Tally:
    """The last line of `make attacks`."""

    def __init__(self) -> None:
        self.attacks: set[str] = set()
        self.undetected: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.attacks = {item.nodeid for item in items if item.get_closest_marker("attack")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self.attacks and (report.failed or report.skipped):
            self.undetected.add(report.nodeid)

    def line(self) -> str:
        return json.dumps({"attacks": len(self.attacks), "undetected": len(self.undetected)})
