"""The first project's name in the ledger is a setting: what was written under an earlier one stays its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import db, tenancy
from service.access import names, service
from service.access.errors import ProjectExists
from service.audit import repository, trust
from service.audit.leaves import LOCAL
from service.audit.schemas import EntryFilters
from service.config import get_settings
from service.verifier.proofs import verify_dossier
from tests.service.access.people import calling, person, project
from tests.service.audit import logs
from tests.service.audit.people import entries, private
from tests.support import ask, code_of, register


def call_home(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a start with another setting."""
    monkeypatch.setenv("EXPUNGE_TENANT", name)
    get_settings.cache_clear()


def seen(project_id: str) -> list[str]:
    """Tenants of the entries that a project's callers are shown, in order."""
    with tenancy.acting(project_id), db.reading() as session:
        return [entry.tenant for entry in repository.batch(session, EntryFilters(), after=-1, below=1000, limit=1000)]


def test_entries_of_an_earlier_name_are_still_the_first_project_s(
    guarded: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, key = person("default", "operator", "requester", "auditor")
    _, _, theirs = person(project("b"), "operator", "requester", "auditor")
    with calling(guarded, key):
        model = register(guarded, tmp_path)
        request = ask(guarded, model, 1, reason="mine").json()["id"]
    with calling(guarded, theirs):
        ask(guarded, register(guarded, tmp_path / "b"), 1)
    before = seen("default")
    for name in ("acme", "zenith"):
        call_home(name, monkeypatch)
        with calling(guarded, key):
            ask(guarded, model, 2 if name == "acme" else 3)
    assert seen("default") == [*before, "acme", "zenith"]
    assert set(seen("b")) == {"b"}
    with calling(guarded, key):
        assert guarded.post(f"/unlearn-requests/{request}/cancel").status_code == 202
        logs.notary().round()
        dossier = guarded.get(f"/unlearn-requests/{request}/dossier")
        (row,) = [e for e in entries("unlearning.request.received") if e.request_id == request]
        assert guarded.post(f"/audit/entries/{row.seq}/shred", json={"ground": "operator"}).status_code == 200
    assert dossier.status_code == 200, dossier.text
    assert private(row.seq).shredded_at is not None
    (tmp_path / "d.zip").write_bytes(dossier.content)
    (tmp_path / "policy").write_text(trust.policy_text(get_settings()))
    report = verify_dossier(tmp_path / "d.zip", tmp_path / "policy")
    assert (report.valid, report.facts.get("events")) == (True, 3), report.reason


def test_nobody_else_gets_a_name_that_the_first_project_has_or_had(
    guarded: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.grow(1)
    call_home("acme", monkeypatch)
    with pytest.raises(ProjectExists):
        service.create_project("acme", actor=LOCAL)  # has, and nothing was written under it
    logs.grow(1)
    call_home("zenith", monkeypatch)
    for name in ("zenith", "acme", "default"):
        with pytest.raises(ProjectExists):
            service.create_project(name, actor=LOCAL)
    assert service.create_project("b", actor=LOCAL).id == "b"
    assert seen("default") == ["default", "acme"]
    assert seen("b") == ["b"]


def test_the_first_project_cannot_take_another_s_name(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, key = person("default", "auditor")
    person(project("b"), "auditor")
    with calling(guarded, key):
        assert guarded.get("/audit/entries").status_code == 200
        assert guarded.get("/readyz").status_code == 200
        call_home("b", monkeypatch)
        assert guarded.get("/audit/entries").status_code == 500
        refused = guarded.get("/readyz")
        assert (refused.status_code, code_of(refused)) == (503, "unavailable")
        assert "another project" in refused.json()["detail"]
    with pytest.raises(names.NameTaken):
        names.require_own()
