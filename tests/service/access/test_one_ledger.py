"""One ledger of several projects: auditors of each get every answer whole, and the home project's get all of the ledger."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service import db, tenancy
from service.audit import checkpoints, ledger, trust
from service.audit.leaves import LOCAL, CertificateIssued
from service.compliance.questions import QUESTIONS, Asking
from service.compliance.reports import REPORTS
from service.config import get_settings
from service.tables import LedgerEntry
from service.verifier.ledger import verify_ledger
from service.verifier.proofs import verify_dossier, verify_receipt
from tests.service.access.people import calling, person, project
from tests.service.access.test_routes import guarded_routes
from tests.service.audit import logs
from tests.service.audit.logs import grow
from tests.support import ask, code_of, publish, register

PROJECTS = ("default", "b")


class Owned(NamedTuple):
    """What a project has, and its auditor's key."""

    auditor: str
    model: str
    request: str
    checkpoint: str
    cancelled: str


@pytest.fixture
def owned(guarded: TestClient, tmp_path: Path) -> dict[str, Owned]:
    """The same in two projects, in a ledger that is signed."""
    found = {}
    for name in PROJECTS:
        key, auditor = person(project(name), "requester", "operator")[2], person(name, "auditor")[2]
        with calling(guarded, key):
            model = register(guarded, tmp_path / name)
            request = ask(guarded, model, 1, jurisdiction="gdpr", recipients=["r"]).json()["id"]
            checkpoint = publish(model, request, {"w.safetensors": name.encode()}, tmp_path / name)
            cancelled = ask(guarded, model, 2).json()["id"]
            assert guarded.post(f"/unlearn-requests/{cancelled}/cancel").status_code == 202
        issued = CertificateIssued(checkpoint_id=checkpoint, payload_sha256="0" * 64, key_id="1" * 64)
        with db.transaction() as session:  # as a worker, who acts in no project
            ledger.append(session, issued, actor=LOCAL, request_id=request, model_id=model["id"])
        found[name] = Owned(auditor, model["id"], request, checkpoint, cancelled)
    logs.notary().round(hurry=True)
    return found


@pytest.fixture(params=PROJECTS)
def mine(request: pytest.FixtureRequest, guarded: TestClient, owned: dict[str, Owned]) -> Iterator[Owned]:
    """What the caller's project has; whoever calls is its auditor."""
    with calling(guarded, owned[request.param].auditor):
        yield owned[request.param]


def others(owned: dict[str, Owned], mine: Owned) -> Owned:
    (other,) = (one for one in owned.values() if one != mine)
    return other


def entries() -> list[LedgerEntry]:
    with db.reading() as session:
        return list(session.scalars(select(LedgerEntry).order_by(LedgerEntry.seq)))


def policy_file(client: TestClient, folder: Path) -> Path:
    file = folder / "trusted"
    file.write_text(client.get("/audit/policy").text)
    return file


def test_the_whole_ledger_is_the_home_project_s_to_take_and_has_every_project_s_entries(
    guarded: TestClient, owned: dict[str, Owned], tmp_path: Path
) -> None:
    size = len(entries())
    with calling(guarded, owned["default"].auditor):
        answer = guarded.get("/audit/export.tar")
        assert answer.status_code == 200, answer.text
        bundle = guarded.get(f"/audit/tile/entries/000.p/{size}")
        assert bundle.status_code == 200, bundle.text
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as packed:
        packed.extractall(tmp_path, filter="data")
    report = verify_ledger(tmp_path / "ledger", policy_file(guarded, tmp_path))
    assert (report.valid, report.facts.get("entries"), report.facts.get("requests")) == (True, size, 4), report.reason
    private = [json.loads(line) for line in (tmp_path / "ledger/private.ndjson").read_text().splitlines()]
    assert {row["kek_id"].partition(".")[0] for row in private} == set(PROJECTS)
    assert bundle.content == (tmp_path / "ledger/tile/entries" / f"000.p/{size}").read_bytes()
    exported, read = [entry for entry in entries() if entry.seq >= size]
    assert [(e.action, e.tenant) for e in (exported, read)] == [("export.made", "default"), ("audit.read", "default")]
    with calling(guarded, owned["b"].auditor):
        assert {guarded.get(path).status_code for path in ("/audit/export.tar", "/audit/tile/entries/000.p/1")} == {403}


def test_what_another_project_took_away_since_the_last_checkpoint_keeps_the_export_waiting(
    guarded: TestClient, owned: dict[str, Owned], tmp_path: Path
) -> None:
    with calling(guarded, person("b", "operator")[2]):
        gone = guarded.post(f"/unlearn-requests/{owned['b'].request}/shred", json={"ground": "operator"})
        assert gone.status_code == 200, gone.text
    with calling(guarded, owned["default"].auditor):
        assert code_of(guarded.get("/audit/export.tar")) == "not_yet_signed"
        logs.notary().round(hurry=True)
        assert guarded.get("/audit/export.tar").status_code == 200


@pytest.mark.parametrize("name", PROJECTS)
def test_what_is_held_shredded_and_redacted_in_one_project_leaves_every_proof_good(
    guarded: TestClient, owned: dict[str, Owned], name: str, tmp_path: Path
) -> None:
    mine = owned[name]
    received = next(e.seq for e in entries() if e.request_id == mine.cancelled)
    ours, theirs = person(name, "operator")[2], person(next(n for n in PROJECTS if n != name), "operator", "approver")[2]
    second = person(name, "approver")[2]
    guarded.app.state.settings = guarded.app.state.settings.model_copy(update={"four_eyes": "two"})  # type: ignore[attr-defined]
    steps: list[tuple[str, dict[str, Any], int]] = [
        (f"/unlearn-requests/{mine.cancelled}/legal-hold", {"hold": True, "ground": "legal_claim"}, 200),
        (f"/audit/entries/{received}/shred", {"ground": "operator"}, 409),
        (f"/unlearn-requests/{mine.cancelled}/legal-hold", {"hold": False, "ground": "legal_claim"}, 200),
        (f"/audit/entries/{received}/shred", {"ground": "operator"}, 200),
        ("/audit/redactions", {"seq": received, "reason": "personal_data"}, 202),
    ]
    for path, body, expected in steps:
        with calling(guarded, theirs):
            assert guarded.post(path, json=body).status_code == 404, path
        with calling(guarded, ours):
            answer = guarded.post(path, json=body)
            assert answer.status_code == expected, (path, answer.text)
    approve = f"/audit/redactions/{answer.json()['id']}/approve"
    for key, expected in ((theirs, 404), (second, 200)):
        with calling(guarded, key):
            assert guarded.post(approve).status_code == expected
    logs.notary().round(hurry=True)
    with calling(guarded, mine.auditor):
        (tmp_path / "dossier.zip").write_bytes(guarded.get(f"/unlearn-requests/{mine.cancelled}/dossier").content)
    report = verify_dossier(tmp_path / "dossier.zip", policy_file(guarded, tmp_path))
    assert (report.valid, report.facts.get("redacted")) == (True, [received]), report.reason
    with (
        calling(guarded, owned["default"].auditor),
        tarfile.open(fileobj=io.BytesIO(guarded.get("/audit/export.tar").content)) as packed,
    ):
        packed.extractall(tmp_path, filter="data")
    report = verify_ledger(tmp_path / "ledger", tmp_path / "trusted")
    assert (report.valid, report.facts.get("shredded")) == (True, [received]), report.reason


def test_the_keys_of_old_checkpoints_are_known_in_every_project(
    guarded: TestClient, owned: dict[str, Owned], caplog: pytest.LogCaptureFixture
) -> None:
    """Those that a key signed which has been retired since are as good as the others, whoever looks."""
    notary = logs.notary()
    old, _ = logs.rotate(notary)
    grow(1)
    notary.round(hurry=True)
    logs.retire(notary, old)
    checkpoints._say.cache_clear()
    with caplog.at_level(logging.ERROR), db.reading() as session:
        found = []
        for name in (None, *PROJECTS):
            with tenancy.acting(name):
                found.append([row.size for row in checkpoints.every(session, trust.policy(get_settings()))])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2
    assert not [record for record in caplog.records if record.message == "checkpoint.skipped"]


def test_gaps_are_the_one_ledger_s_whoever_asks(guarded: TestClient, owned: dict[str, Owned]) -> None:
    with db.reading() as session:
        late = Asking(at=db.now(session).replace(year=2100), size=len(entries()))
    told = []
    for name in (None, *PROJECTS):
        with tenancy.acting(name):
            told.append(list(QUESTIONS["checkpoint-gaps"].rows(late)))
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 1


# ------------------------------------------------------------------------------------------------- every answer, whole


def test_no_route_of_the_ledger_is_left_out_here() -> None:
    tried = {
        *("list_audit_entries", "export_audit_entries", "read_audit_entry", "read_audit_inclusion", "list_audit_redactions"),
        *("list_audit_questions", "ask_audit_question", "list_audit_reports", "read_audit_report"),
        *("read_dossier", "read_unlearn_request_receipt", "read_checkpoint_receipt"),
        *("read_audit_bundle", "export_audit_ledger"),  # above
    }
    named = ("/audit/", "/dossier", "/receipt")
    routes = [route for route, _ in guarded_routes() if "GET" in (route.methods or ()) and any(n in route.path for n in named)]
    assert {route.name for route in routes} == tried


def test_entries_are_one_s_own_by_list_by_file_and_by_number(guarded: TestClient, owned: dict[str, Owned], mine: Owned) -> None:
    tenant = next(name for name, one in owned.items() if one == mine)
    own = [entry.seq for entry in entries() if entry.tenant == tenant]
    listed = guarded.get("/audit/entries", params={"include": "private", "limit": 100})
    assert listed.status_code == 200, listed.text
    assert [row["seq"] for row in listed.json()["data"]] == own
    asked = next(row for row in listed.json()["data"] if row["request_id"] == mine.request)
    assert asked["private_fault"] is None
    exported = guarded.get("/audit/export")
    assert exported.status_code == 200
    lines = [json.loads(line) for line in exported.text.splitlines()]
    assert [line["seq"] for line in lines][: len(own)] == own
    assert {json.loads(line["leaf"])["tenant"] for line in lines} == {tenant}
    for entry in entries():
        expected = 200 if entry.tenant == tenant else 404
        assert guarded.get(f"/audit/entries/{entry.seq}").status_code == expected
    assert guarded.get("/audit/redactions").json()["data"] == []


def test_dossiers_receipts_and_proofs_verify(guarded: TestClient, owned: dict[str, Owned], mine: Owned, tmp_path: Path) -> None:
    policy = policy_file(guarded, tmp_path)
    assert guarded.get(f"/unlearn-requests/{mine.request}/dossier").status_code == 200
    dossier = guarded.get(f"/unlearn-requests/{mine.cancelled}/dossier")
    assert dossier.status_code == 200, dossier.text
    (tmp_path / "dossier.zip").write_bytes(dossier.content)
    report = verify_dossier(tmp_path / "dossier.zip", policy)
    of_request = [entry.seq for entry in entries() if entry.request_id == mine.cancelled]
    assert (report.valid, report.facts.get("events")) == (True, len(of_request)), report.reason
    paths = [f"/unlearn-requests/{mine.request}/receipt", f"/checkpoints/{mine.checkpoint}/receipt"]
    paths += [f"/audit/proof/inclusion?seq={seq}" for seq in of_request]
    for number, path in enumerate(paths):
        answer = guarded.get(path)
        assert answer.status_code == 200, (path, answer.text)
        file = tmp_path / f"{number}.tlog-proof"
        file.write_text(answer.text)
        checked = verify_receipt(file, policy)
        assert checked.valid, (path, checked.reason)
    hashes = guarded.get(f"/audit/proof/inclusion?seq={of_request[0]}", headers={"Accept": "application/json"})
    assert (hashes.status_code, hashes.json()["size"] > of_request[-1]) == (200, True)
    other = others(owned, mine)
    for path in (f"/unlearn-requests/{other.request}/dossier", f"/checkpoints/{other.checkpoint}/receipt"):
        assert guarded.get(path).status_code == 404


def test_questions_and_reports_are_answered_of_one_s_own(guarded: TestClient, owned: dict[str, Owned], mine: Owned) -> None:
    known = {"request_id": mine.request, "model_id": mine.model}
    other = others(owned, mine)
    expected = {  # rows of one project that has asked and published once, and read nothing yet
        "questions/overdue": 0,
        "questions/request-history": len([e for e in entries() if e.request_id == mine.request]),
        "questions/models-of-request": 1,
        "questions/requests-of-model": 2,
        "questions/without-third-party-evidence": 1,
        "questions/recipients-not-told": 1,
        "reports/deadlines": 1,
        "reports/annual": 1,
        "reports/retention": 1,
        "reports/recipients": 1,
    }
    for where, all_of in (("questions", QUESTIONS), ("reports", REPORTS)):
        assert [one["name"] for one in guarded.get(f"/audit/{where}").json()] == list(all_of)
        for name, question in all_of.items():
            given = {parameter: known[parameter] for parameter in question.needs}
            for kind in ("json", "csv", "jsonl"):
                answer = guarded.get(f"/audit/{where}/{name}", params={**given, "format": kind})
                assert answer.status_code == 200, (name, answer.text)
                assert not [i for i in other if i in answer.text], name
                if kind == "json" and f"{where}/{name}" in expected:
                    assert len(answer.json()["data"]) == expected[f"{where}/{name}"], name
    read = guarded.get("/audit/reports/access").json()["data"]
    assert {row["what"] for row in read} >= {"questions/overdue", "reports/annual"}
