"""`expunge checkpoint download` against the service: files first, then the receipts that there can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service import cli, db
from service.audit import ledger
from service.audit.leaves import LOCAL, CertificateIssued, PlanCommitted
from service.commands import OWED
from tests.service.audit import logs
from tests.support import ask, publish, register

RECEIPTS = {"UNLEARNING/certificate.tlog-proof", "UNLEARNING/policy.txt"}
ISSUED = CertificateIssued(checkpoint_id="c", payload_sha256="0" * 64, key_id="k")
DIGESTS = ("spec_sha256", "policy_sha256", "base_digest", "original_digest", "dataset_digest")
PLANNED = PlanCommitted(fence=1, **dict.fromkeys(DIGESTS, "0" * 64))


@pytest.fixture
def published(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A checkpoint that no command of this test downloads over a network."""
    monkeypatch.setattr("service.client.transport._Patient", lambda **_: client)
    monkeypatch.setattr(client, "close", lambda: None)
    model = register(client, tmp_path)
    request_id = ask(client, model, 1).json()["id"]
    return {"request": request_id, "id": publish(model, request_id, {"w.safetensors": b"x"}, tmp_path)}


def record(request_id: str, *facts: Any) -> None:
    for fact in facts:
        with db.transaction() as session:
            ledger.append(session, fact, actor=LOCAL, request_id=request_id)


def download(checkpoint_id: str, folder: Path, wait: str = "0") -> Any:
    return CliRunner().invoke(cli.app, ["checkpoint", "download", checkpoint_id, str(folder), "--wait", wait])


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_without_a_log_signer_the_files_come_and_the_receipts_are_owed(
    client: TestClient, published: dict[str, str], tmp_path: Path
) -> None:
    record(published["request"], ISSUED)
    target = tmp_path / "got"
    first = download(published["id"], target)
    assert (first.exit_code, OWED) == (4, 4), first.output
    assert below(target) == {"w.safetensors", "UNLEARNING/certificate.sigstore.json"}
    assert all(name in first.output for name in RECEIPTS)
    kept = (target / "w.safetensors").stat().st_mtime_ns

    logs.notary().round()  # the signer is back
    again = download(published["id"], target)
    assert again.exit_code == 0, again.output
    assert below(target) == {"w.safetensors", "UNLEARNING/certificate.sigstore.json", *RECEIPTS}
    assert (target / "w.safetensors").stat().st_mtime_ns == kept  # not fetched twice


def test_a_file_that_lies_there_and_is_another_is_fetched_again(published: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "w.safetensors").write_bytes(b"y")
    assert download(published["id"], tmp_path / "got").exit_code == 0
    assert (tmp_path / "got" / "w.safetensors").read_bytes() == b"x"


def test_only_what_there_can_be_is_listed(client: TestClient, published: dict[str, str], tmp_path: Path) -> None:
    """A release that recorded no plan leaves a certificate without a receipt of one; nobody waits for it."""

    def later() -> set[str]:
        return set(client.get(f"/checkpoints/{published['id']}").json()["later"])

    assert later() == set()
    done = download(published["id"], tmp_path / "got")
    assert done.exit_code == 0, done.output
    record(published["request"], ISSUED)
    assert later() == RECEIPTS
    record(published["request"], PLANNED)
    assert later() == {*RECEIPTS, "UNLEARNING/plan.tlog-proof"}


def test_any_other_refusal_is_an_error(client: TestClient, published: dict[str, str], tmp_path: Path) -> None:
    assert download("ckpt_none", tmp_path / "got").exit_code == 1
    client.post(f"/checkpoints/{published['id']}/revoke", json={"reason": "other"})
    refused = download(published["id"], tmp_path / "got")
    assert (refused.exit_code, "checkpoint_revoked" in refused.output) == (1, True), refused.output
