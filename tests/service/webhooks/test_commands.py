"""`expunge webhook …`, against the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service import webhook_commands
from service.cli import app
from service.client import Client
from service.webhooks.sender import Sender
from tests.service.webhooks.conftest import Wire


@pytest.mark.one_database
def test_the_command_line_s_verbs(client: TestClient, sender: Sender, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def here(_url: str) -> Iterator[Client]:
        made = Client("http://127.0.0.1")
        made._http.close()
        made._http = client
        yield made

    monkeypatch.setattr(webhook_commands, "client_of", here)

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, ["webhook", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    address = "https://hooks.example.org/x"
    made = json.loads(run("create", address, "--event", "checkpoint.revoked", "--json"))
    assert (made["url"], made["event_types"]) == (address, ["checkpoint.revoked"])
    assert [row["id"] for row in json.loads(run("list", "--json"))] == [made["id"]]
    secret = run("rotate", made["id"], "--overlap-hours", "1").strip()
    assert secret.startswith("whsec_")
    assert secret != made["secret"]
    client.post(f"/webhook-endpoints/{made['id']}/test")
    sender.once()
    [sent] = json.loads(run("deliveries", made["id"], "--status", "delivered", "--json"))
    again = json.loads(run("redeliver", made["id"], sent["id"]))
    assert (again["redelivery_of"], again["message_id"]) == (sent["id"], sent["message_id"])
    assert sender.once() == 1
    assert len(wire.sent) == 2
