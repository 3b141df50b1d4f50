"""Where two people are needed, two keys of one person are one person, and two persons with a key each are two."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import tenancy
from service.access import service
from service.audit.leaves import LOCAL
from service.config import get_settings
from service.edge import writing
from tests.service.access.people import bearer, calling, person
from tests.support import ask, code_of, publish, register


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_FOUR_EYES", "two")


def second_key(principal: str) -> str:
    with tenancy.acting(None), writing() as session:
        owner = service.get_principal(session, principal)
        return service.create_key(session, principal=owner, name="2", days=1, actor=LOCAL)[1]


def test_a_redaction_takes_two_principals(strict: None, guarded: TestClient) -> None:
    assert get_settings().four_eyes == "two"
    ada, _, key = person("default", "operator", "approver")
    _, _, bob = person("default", "approver")
    asked = guarded.post("/audit/redactions", json={"seq": 0, "reason": "security"}, headers=bearer(key))
    assert (asked.status_code, asked.json()["status"], asked.json()["requested_by"]) == (202, "pending", f"user:{ada}")
    address = f"/audit/redactions/{asked.json()['id']}/approve"
    for mine in (key, second_key(ada)):
        assert code_of(guarded.post(address, headers=bearer(mine))) == "self_approval_forbidden"
    done = guarded.post(address, headers=bearer(bob)).json()
    assert (done["status"], done["self_approved"]) == ("done", False)


def test_a_revocation_takes_two_principals(strict: None, guarded: TestClient, tmp_path: Path) -> None:
    _, _, key = person("default", "requester", "operator", "approver")
    bob, _, theirs = person("default", "approver")
    with calling(guarded, key):
        model = register(guarded, tmp_path)
        checkpoint = publish(model, ask(guarded, model, 1).json()["id"], {"w.safetensors": b"x"}, tmp_path)
        address = f"/checkpoints/{checkpoint}/revoke"
        assert guarded.post(address, json={"reason": "result_wrong"}).json()["status"] == "asked"
        assert code_of(guarded.post(f"{address}/approve")) == "four_eyes"
        assert guarded.get(f"/checkpoints/{checkpoint}/files/w.safetensors").status_code == 200
    done = guarded.post(f"{address}/approve", headers=bearer(theirs)).json()
    assert (done["status"], done["approved_by"], done["self_approved"]) == ("approved", f"user:{bob}", False)
    assert guarded.get(f"/checkpoints/{checkpoint}/files/w.safetensors", headers=bearer(key)).status_code == 410


def test_a_requester_withdraws_what_is_theirs_and_an_operator_what_is_anybody_s(guarded: TestClient, tmp_path: Path) -> None:
    _, _, operator = person("default", "operator")
    _, _, ada = person("default", "requester")
    _, _, bob = person("default", "requester")
    with calling(guarded, operator):
        model = register(guarded, tmp_path)
    first = f"/unlearn-requests/{ask_as(guarded, ada, model, 1)}"
    second = f"/unlearn-requests/{ask_as(guarded, ada, model, 2)}"
    assert code_of(guarded.post(f"{first}/cancel", headers=bearer(bob))) == "forbidden"
    assert guarded.post(f"{first}/cancel", headers=bearer(ada)).json()["status"] == "cancelled"
    assert guarded.post(f"{second}/cancel", headers=bearer(operator)).json()["status"] == "cancelled"


def ask_as(client: TestClient, key: str, model: dict[str, object], class_index: int) -> str:
    with calling(client, key):
        return str(ask(client, model, class_index).json()["id"])
