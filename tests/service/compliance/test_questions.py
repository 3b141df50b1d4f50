"""The twelve questions and the reports, on both databases, in every format, and each asking on record."""

from __future__ import annotations

import base64
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import select, update

from service import db
from service.compliance import formats, questions
from service.compliance.questions import QUESTIONS
from service.compliance.reports import REPORTS
from service.tables import Checkpoint, LedgerCheckpoint, ModelVersion, UnlearnRequest
from tests.service.audit.logs import grow, signed
from tests.service.audit.people import acting, ask_about, entries, received, said
from tests.support import Json, ask, code_of, publish, register

AGO = datetime.now(UTC).replace(microsecond=0)


def days_ago(days: int) -> str:
    return (AGO - timedelta(days=days)).isoformat()


def answer(client: TestClient, name: str, where: str = "questions", **asked: Any) -> list[Json]:
    response = client.get(f"/audit/{where}/{name}", params=asked)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["columns"] == list((QUESTIONS if where == "questions" else REPORTS)[name].columns)
    assert all(set(row) == set(body["columns"]) for row in body["data"])
    rows: list[Json] = body["data"]
    return rows


def tell(client: TestClient, request_id: str, kind: str, **more: Any) -> None:
    made = client.post(f"/unlearn-requests/{request_id}/compliance-events", json={"type": kind, **more})
    assert made.status_code == 201, made.text


@pytest.fixture
def model(client: TestClient, tmp_path: Path) -> Json:
    return register(client, tmp_path)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "BATCH", 2)


def test_overdue(client: TestClient, model: Json) -> None:
    late, answered, fresh = (
        ask(client, model, k, jurisdiction="gdpr", received_at=days_ago(ago)).json()["id"]
        for k, ago in ((1, 40), (2, 41), (3, 1))
    )
    tell(client, answered, "answered", answered_at=days_ago(0), result="erased")
    (row,) = answer(client, "overdue")
    assert (row["request_id"], row["jurisdiction"], row["status"]) == (late, "gdpr", "queued")
    assert 8 <= row["days_late"] <= 12  # 40 days less a month of 28 to 31 days, rounded down
    assert fresh not in json.dumps(row)


def test_request_history(client: TestClient, model: Json) -> None:
    request_id = ask(client, model, 1).json()["id"]
    ask(client, model, 2)
    client.post(f"/unlearn-requests/{request_id}/cancel")
    rows = answer(client, "request-history", request_id=request_id)
    assert [(r["ordinal"], r["action"].rpartition(".")[2]) for r in rows] == [(0, "received"), (1, "withdrawn"), (2, "closed")]
    assert rows[2]["said"] == {"status": "cancelled"}
    client.post("/audit/redactions", json={"seq": rows[0]["seq"], "reason": "personal_data"})
    (gone, *_) = answer(client, "request-history", request_id=request_id)
    assert (gone["said"], gone["redacted_by"]) == ({}, entries("entry.redacted")[0].seq)


def _published(client: TestClient, model: Json, scratch: Path, *classes: int) -> list[tuple[str, str]]:
    made = []
    for k in classes:
        request_id = ask(client, model, k).json()["id"]
        with db.transaction() as session:
            number = session.scalars(select(ModelVersion.number).order_by(ModelVersion.number.desc())).first()
            base = session.scalars(select(ModelVersion.id).where(ModelVersion.number == number)).one()
            session.execute(update(UnlearnRequest).where(UnlearnRequest.id == request_id).values(base_version_id=base))
        made.append((request_id, publish(model, request_id, {"w.safetensors": b"%d" % k}, scratch)))
        with db.transaction() as session:
            session.execute(update(ModelVersion).where(ModelVersion.checkpoint_id == made[-1][1]).values(parent_id=base))
    return made


def test_models_of_request(client: TestClient, model: Json, tmp_path: Path) -> None:
    (first, checkpoint), (second, _) = _published(client, model, tmp_path, 1, 2)
    roles = {r["number"]: r["role"] for r in answer(client, "models-of-request", request_id=first)}
    assert roles == {1: "base", 2: "result", 3: "successor"}
    roles = {r["number"]: r["role"] for r in answer(client, "models-of-request", request_id=second)}
    assert roles == {2: "base", 3: "result"}
    pending = ask(client, model, 3).json()["id"]
    assert answer(client, "models-of-request", request_id=pending) == []
    unknown = client.get("/audit/questions/models-of-request", params={"request_id": "ureq_" + "0" * 32})
    assert code_of(unknown) == "request_not_found"
    assert checkpoint.startswith("ckpt_")


def test_requests_of_model(client: TestClient, model: Json, tmp_path: Path) -> None:
    made = [ask(client, model, k, **more).json()["id"] for k, more in ((1, {}), (2, {"jurisdiction": "ccpa"}), (3, {}))]
    rows = answer(client, "requests-of-model", model_id=model["id"])
    assert {r["request_id"]: r["jurisdiction"] for r in rows} == {made[0]: None, made[1]: "ccpa", made[2]: None}
    assert answer(client, "requests-of-model", model_id="mdl_none") == []


def test_without_third_party_evidence(client: TestClient, model: Json, tmp_path: Path) -> None:
    (plain,) = _published(client, model, tmp_path, 1)

    def certificate(**evidence: Any) -> dict[str, Any]:
        payload = json.dumps({"predicate": {"evidence": [evidence]}}).encode()
        return {"dsseEnvelope": {"payload": base64.b64encode(payload).decode()}}

    kinds = {"good": ("third_party", True), "failed": ("third_party", False), "own": ("self_attested", True)}
    for name, (level, passed) in kinds.items():
        request_id = ask(client, model, {"good": 2, "failed": 3, "own": 4}[name]).json()["id"]
        with db.transaction() as session:
            session.add(
                Checkpoint(id=f"ckpt_{name}", request_id=request_id, model_id=model["id"], fence=1, digest="0" * 64,
                           certificate=certificate(assuranceLevel=level, passed=passed), created_at=db.now(session))
            )  # fmt: skip
    rows = answer(client, "without-third-party-evidence")
    assert {r["checkpoint_id"] for r in rows} == {plain[1], "ckpt_failed", "ckpt_own"}


def test_parents_still_served(client: TestClient, model: Json, tmp_path: Path) -> None:
    _published(client, model, tmp_path, 1, 2)
    rows = answer(client, "parents-still-served")
    assert sorted(r["parent_number"] for r in rows) == [1, 2]
    assert client.post(f"/models/{model['id']}/versions/1/disposition", json={"state": "quarantined"}).status_code == 201
    assert len(answer(client, "parents-still-served")) == 2  # kept apart is not gone
    assert client.post(f"/models/{model['id']}/versions/1/disposition", json={"state": "withdrawn"}).status_code == 201
    assert [r["parent_number"] for r in answer(client, "parents-still-served")] == [2]
    for entry in entries("model.parent.disposed"):
        client.post("/audit/redactions", json={"seq": entry.seq, "reason": "personal_data"})
    assert [e.leaf for e in entries("model.parent.disposed")] == [None, None]
    assert [r["parent_number"] for r in answer(client, "parents-still-served")] == [2]


def _with_recipients(client: TestClient, model: Json, tmp_path: Path) -> str:
    request_id: str = ask(client, model, 1, jurisdiction="gdpr", recipients=["a", "b", "c"]).json()["id"]
    publish(model, request_id, {"w.safetensors": b"x"}, tmp_path)
    tell(client, request_id, "recipient.notified", recipient="b", at=days_ago(0))
    tell(client, request_id, "recipient.notified", recipient="c", at=days_ago(0), result="impossible")
    return request_id


def test_recipients_not_told(client: TestClient, model: Json, tmp_path: Path) -> None:
    request_id = _with_recipients(client, model, tmp_path)
    ask(client, model, 2, recipients=["z"])  # nothing is forgotten yet, so there is nothing to tell
    rows = answer(client, "recipients-not-told")
    assert [(r["request_id"], r["recipient"]) for r in rows] == [(request_id, "a")]


def test_access(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    with acting(client, "anna"):
        client.get("/audit/entries", params={"request_id": request_id, "include": "private"})
    client.get("/audit/export")
    rows = answer(client, "access")
    assert [(r["actor"], r["action"], r["what"], r["count"], r["opened"]) for r in rows] == [
        ("user:anna", "private.opened", None, 1, [received(request_id)]),
        ("user:anna", "audit.read", "entries", 1, None),
        ("user:local", "export.made", "entries", 5, None),  # dataset, model, request, and anna's two
    ]
    assert [r["action"] for r in answer(client, "access")][3:] == ["audit.read"]  # the question itself, once it was asked
    assert said(entries("audit.read")[1])["what"] == "questions/access"
    assert said(entries("audit.read")[1])["count"] == 3


def test_extensions_and_refusals(client: TestClient, model: Json) -> None:
    first, second = (
        ask(client, model, k, jurisdiction=law, received_at=days_ago(50)).json()["id"] for k, law in ((1, "gdpr"), (2, "ccpa"))
    )
    tell(client, first, "deadline.extended", reason="complexity", informed_at=days_ago(1))
    tell(client, second, "deadline.extended", reason="reasonably_necessary", informed_at=days_ago(20))
    rows = {r["request_id"]: (r["reason"], r["told_late"]) for r in answer(client, "extensions")}
    assert rows == {first: ("complexity", True), second: ("reasonably_necessary", False)}
    tell(client, first, "assessed.refused", ground="legal_claims", informed_at=days_ago(1), remedy_notice=True)
    (row,) = answer(client, "refusals")
    assert (row["request_id"], row["ground"], row["jurisdiction"]) == (first, "legal_claims", "gdpr")


def test_redactions_and_shreds(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    seq = received(request_id)
    client.post("/audit/redactions", json={"seq": 0, "reason": "court_order"})
    client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "erasure_request"})
    rows = answer(client, "redactions-and-shreds")
    assert [(r["action"], r["ground"], r["concerns"], r["self_approved"]) for r in rows] == [
        ("entry.redacted", "court_order", [0], True),
        ("private.shredded", "erasure_request", [seq], None),
    ]


def test_checkpoint_gaps(client: TestClient, database: str) -> None:
    assert answer(client, "checkpoint-gaps") == []  # nothing was recorded before it was asked
    grow(3)
    with db.transaction() as session:
        at = db.now(session)
        # of an hour ago, and of 50 and 70 hours after the first entry's day, as if that lay in the past
        for hours, size in ((200, 1), (190, 1), (150, 2), (1, 3)):
            note = signed("log.example/l", Ed25519PrivateKey.generate(), size, bytes(32))
            session.add(LedgerCheckpoint(log_id=1, size=size, created_at=at - timedelta(hours=hours), note=note))
        for hours, size, no in ((170, 1, "junk"), (171, 9, note), (100, 4, note)):  # nothing was signed in between
            session.add(LedgerCheckpoint(log_id=1, size=size, created_at=at - timedelta(hours=hours), note=no))
    rows = answer(client, "checkpoint-gaps")
    assert [(r["size"], r["hours"]) for r in rows] == [(1, 40), (2, 149)]
    assert all(r["next_at"] for r in rows)
    later = questions.Asking(at=at + timedelta(hours=30), size=10)
    assert [(r["size"], r["next_at"], r["hours"]) for r in questions.QUESTIONS["checkpoint-gaps"].rows(later)][2:] == [
        (3, None, 31)  # since the last one
    ]


# ------------------------------------------------------------------------------------------------------------ reports


def test_deadlines(client: TestClient, model: Json) -> None:
    given = {"a": ("gdpr", 40), "b": ("gdpr", 1), "c": ("ccpa", 50), "d": ("gdpr", 3)}
    made = {
        name: ask(client, model, k, jurisdiction=law, received_at=days_ago(ago)).json()["id"]
        for k, (name, (law, ago)) in enumerate(given.items())
    }
    tell(client, made["c"], "answered", answered_at=days_ago(1), result="erased")
    tell(client, made["d"], "answered", answered_at=days_ago(1), result="erased")
    rows = {r["request_id"]: r for r in answer(client, "deadlines", "reports")}
    assert {name: rows[of]["state"] for name, of in made.items()} == {
        "a": "overdue", "b": "open", "c": "answered_late", "d": "answered",
    }  # fmt: skip
    assert rows[made["a"]]["days_left"] < 0 < rows[made["b"]]["days_left"]
    assert rows[made["c"]]["days_left"] is None
    assert [r["request_id"] for r in answer(client, "deadlines", "reports", jurisdiction="ccpa")] == [made["c"]]


def test_annual(client: TestClient, model: Json) -> None:
    """Answered after 2, 5 and 8 days: median 5.0, mean 5.0; one is open."""
    base = datetime(2025, 3, 1, 12, tzinfo=UTC)
    for k, took in enumerate((2, 5, 8, None)):
        of = ask(client, model, k, jurisdiction="ccpa", received_at=base.isoformat()).json()["id"]
        if took is not None:
            tell(client, of, "answered", answered_at=(base + timedelta(days=took)).isoformat(), result="erased")
    (row,) = answer(client, "annual", "reports", year=2025)
    assert (row["received"], row["answered"], row["answered_late"], row["overdue"]) == (4, 3, 0, 1)
    assert (row["median_days"], row["mean_days"]) == ("5.0", "5.0")
    assert answer(client, "annual", "reports", year=2024) == []


def test_access_retention_and_recipients(client: TestClient, model: Json, tmp_path: Path) -> None:
    request_id = _with_recipients(client, model, tmp_path)
    rows = answer(client, "recipients", "reports")
    assert [(r["recipient"], r["told"], r["result"]) for r in rows] == [
        ("a", False, None), ("b", True, "told"), ("c", True, "impossible"),
    ]  # fmt: skip
    client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "operator"})
    ask(client, model, 2, reason="x")
    (row,) = answer(client, "retention", "reports")
    assert (row["class"], row["rows"], row["kept"], row["clock_not_running"], row["due"]) == ("request", 2, 1, 1, 0)
    for _ in range(2):
        client.get("/audit/entries", params={"limit": 2})
    found = {(r["what"], r["times"], r["rows"]) for r in answer(client, "access", "reports")}
    assert ("entries", 2, 4) in found
    assert ("reports/retention", 1, 1) in found


# ------------------------------------------------------------------------------------------------------------ formats


def test_every_question_is_listed_and_can_be_asked(client: TestClient) -> None:
    for where, known in (("questions", QUESTIONS), ("reports", REPORTS)):
        listed = client.get(f"/audit/{where}").json()
        assert [q["name"] for q in listed] == list(known)
        for question in listed:
            given = {"request_id": "ureq_" + "0" * 32, "model_id": "m"}
            asked = {name: given[name] for name in question["needs"]}
            assert client.get(question["url"], params=asked).status_code in (200, 404)
    assert len(QUESTIONS) == 12
    assert code_of(client.get("/audit/questions/nonsense")) == "question_not_found"
    for query in ("request-history", "overdue?year=2025", "overdue?nonsense=1", "overdue?format=xml"):
        assert client.get(f"/audit/questions/{query}").status_code == 422


def test_csv_and_lines_say_the_same_and_are_exports(client: TestClient, model: Json) -> None:
    asked = {"model_id": model["id"]}
    for k in (1, 2, 3):
        ask(client, model, k)
    url = "/audit/questions/requests-of-model"
    plain = client.get(url, params=asked).json()["data"]
    lines = client.get(url, params=asked, headers={"Accept": "application/jsonl"})
    assert [json.loads(line) for line in lines.text.splitlines()] == plain
    table = client.get(url, params={**asked, "format": "csv"}, headers={"Accept": "application/json"})
    assert table.headers["content-type"].startswith("text/csv")
    found = list(csv.DictReader(io.StringIO(table.text)))
    assert [r["request_id"] for r in found] == [r["request_id"] for r in plain]
    assert {r["checkpoint_id"] for r in found} == {""}
    assert [(said(e)["what"], said(e)["count"]) for e in entries("export.made")] == [("questions/requests-of-model", 3)] * 2
    table = client.get("/audit/export", params={"type": "unlearning"}, headers={"Accept": "text/csv"})
    assert [r["action"] for r in csv.DictReader(io.StringIO(table.text))] == ["unlearning.request.received"] * 3


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
"""Surrogates are no text: they have no UTF-8."""
LIKELY = st.tuples(st.sampled_from(["'", "''", *FORMULA, "＝", "＠", '"', ",", " ", ""]), ANY_TEXT).map("".join)


@given(first=ANY_TEXT | LIKELY, second=ANY_TEXT | LIKELY, third=st.lists(LIKELY, min_size=2))
@example(first="'=1+1", second="=1+1", third=["=a", "b"])
@example(first="\r\n", second="\t=1", third=["-1", '"'])
@example(first="'", second="＝1+1", third=["", "=1"])
def test_no_cell_is_a_formula_and_every_text_comes_back(first: str, second: str, third: list[str]) -> None:
    """As documented: take one apostrophe off the front of each text that has one."""
    row = {"a": first, "b": second, "c": third}
    body = b"".join(formats.lines(("a", "b", "c"), [row], "csv", name="x")).decode()
    header, cells = csv.reader(io.StringIO(body, newline=""))
    assert header == ["a", "b", "c"]
    assert not any(cell.startswith((*FORMULA, "＝", "＋", "－", "＠")) for cell in cells)
    assert [cell.removeprefix("'") for cell in cells] == [first, second, " ".join(third)]


def test_what_is_no_text_is_left_as_it_is() -> None:
    assert [formats.cell(v) for v in (-1, -0.5, True, None, "a=1")] == ["-1", "-0.5", "true", "", "a=1"]
