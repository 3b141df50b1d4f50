"""A dossier: one request's chain, checkable by whoever unpacks it, silent about people."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import db, tenancy
from service.audit import redaction, trust
from service.audit.leaves import LOCAL
from service.compliance.dossier import build
from service.config import get_settings
from service.errors import NotYetSigned
from service.verifier.merkle import leaf_hash
from service.verifier.proofs import verify_dossier
from tests.service.audit import logs
from tests.service.audit.logs import grow
from tests.service.audit.people import NAME, ask_about, entries, said
from tests.support import ask, code_of, publish, register


def sign() -> None:
    assert logs.notary().round(hurry=True) is not None


def unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_dossier_is_the_requests_chain(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path, jurisdiction="gdpr")
    client.post(f"/unlearn-requests/{request_id}/cancel")
    assert code_of(client.get(f"/unlearn-requests/{request_id}/dossier")) == "not_yet_signed"
    sign()
    response = client.get(f"/unlearn-requests/{request_id}/dossier")
    assert response.headers["content-type"] == "application/zip"
    files = unzip(response.content)
    events = [json.loads(line) for line in files["events.ndjson"].splitlines()]
    before = None
    for ordinal, event in enumerate(events):
        leaf = json.loads(event["leaf"])
        assert leaf["request"] == {"id": request_id, "ordinal": ordinal, "prev": before}
        before = leaf_hash(event["leaf"].encode()).hex()
    assert leaf["type"] == "unlearning.request.closed"
    manifest = json.loads(files["manifest.json"])
    assert (manifest["request_id"], manifest["size"]) == (request_id, 6)
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(files[name]).hexdigest() == digest
    assert {line.split("  ")[1] for line in files["SHA256SUMS"].decode().splitlines()} == set(files) - {"SHA256SUMS"}
    assert not [name for name, data in files.items() if NAME.encode() in data]
    checked = tmp_path / "dossier.zip"
    checked.write_bytes(response.content)
    (tmp_path / "policy").write_text(client.get("/audit/policy").text)
    report = verify_dossier(checked, tmp_path / "policy")
    assert (report.status, report.facts["closed"], report.facts["events"]) == (0, True, 3), report.reason
    (taken,) = entries("export.made")
    assert (said(taken)["what"], said(taken)["count"]) == ("dossier", 3)


def test_a_redacted_event_is_there_by_its_hash(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    client.post("/audit/redactions", json={"seq": 2, "reason": "personal_data"})
    sign()
    zipped = client.get(f"/unlearn-requests/{request_id}/dossier").content
    (event,) = unzip(zipped)["events.ndjson"].splitlines()
    assert json.loads(event) == {"seq": 2, "redacted_by": 3, "leaf_hash": entries()[2].leaf_hash.hex()}
    (tmp_path / "dossier.zip").write_bytes(zipped)
    (tmp_path / "policy").write_text(client.get("/audit/policy").text)
    report = verify_dossier(tmp_path / "dossier.zip", tmp_path / "policy")
    assert (report.status, report.facts["redacted"], report.facts["events"]) == (0, [2], 1), report.reason


def test_what_another_project_redacted_is_proved_in_the_dossier_too(database: str, tmp_path: Path) -> None:
    with tenancy.acting("prj_1"):
        grow(2, request_id="ureq_1")
    sign()
    with db.transaction() as session:  # the operator, who belongs to no project
        redaction.request(session, seq=1, ground="court_order", actor=LOCAL, four_eyes="solo")
    with tenancy.acting("prj_1"), db.reading() as session, pytest.raises(NotYetSigned):
        build(session, get_settings(), "ureq_1")
    sign()
    with tenancy.acting("prj_1"), db.reading() as session:
        zipped, _ = build(session, get_settings(), "ureq_1")
    (tmp_path / "dossier.zip").write_bytes(zipped)
    (tmp_path / "policy").write_text(trust.policy_text(get_settings()))
    report = verify_dossier(tmp_path / "dossier.zip", tmp_path / "policy")
    assert (report.status, report.facts["redacted"], report.facts["events"]) == (0, [1], 2), report.reason


def test_certificates_are_in_it_as_bundles(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    request_id = ask(client, model, 1).json()["id"]
    checkpoint = publish(model, request_id, {"w.safetensors": b"x"}, tmp_path)
    sign()
    files = unzip(client.get(f"/unlearn-requests/{request_id}/dossier").content)
    bundle = json.loads(files[f"certificates/{checkpoint}.sigstore.json"])
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["dsseEnvelope"]["payload"] == "e30="
    assert code_of(client.get("/unlearn-requests/ureq_" + "0" * 32 + "/dossier")) == "request_not_found"
