"""`expunge keys`, and how the client commands show who they are."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.access import apikeys
from service.client import Client
from tests.support import one_database

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EXPUNGE_")}
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def installation(database: str, tmp_path: Path) -> dict[str, str]:
    return {"EXPUNGE_DATA_DIR": str(tmp_path / "expunge"), "EXPUNGE_DATABASE_URL": database, "EXPUNGE_AUTH": "required"}


@pytest.fixture
def served(installation: dict[str, str]) -> Iterator[str]:
    """`expunge serve` on an address that `local` would refuse."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "0.0.0.0", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **installation}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline, "the service did not start"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@one_database
def test_from_the_first_key_to_a_revoked_one(installation: dict[str, str], served: str, tmp_path: Path) -> None:
    first = run("keys", "bootstrap", **installation)
    assert first.returncode == 0, first.stderr
    admin = first.stdout.strip()
    assert apikeys.id_of(admin)
    assert admin not in first.stderr
    again = run("keys", "bootstrap", **installation)
    assert again.returncode == 2
    assert "admin" in again.stderr
    file = tmp_path / "admin.key"
    file.write_text(admin + "\n")
    made = run("--key-file", str(file), "keys", "create", "--name", "ci", "--role", "auditor", "--json", EXPUNGE_URL=served)
    key = json.loads(made.stdout)["key"]
    listed = run("models", "list", "--json", EXPUNGE_URL=served, EXPUNGE_API_KEY=key)
    assert (listed.returncode, json.loads(listed.stdout)) == (0, [])
    keys = json.loads(run("keys", "list", "--json", EXPUNGE_URL=served, EXPUNGE_API_KEY=admin).stdout)
    assert [one["name"] for one in keys] == ["ci", "bootstrap"]
    gone = run("--key-file", str(file), "keys", "revoke", key[:21], EXPUNGE_URL=served)
    assert json.loads(gone.stdout)["revoked_at"]
    refused = run("models", "list", EXPUNGE_URL=served, EXPUNGE_API_KEY=key)
    assert refused.returncode == 1
    assert "unauthenticated (401)" in refused.stderr
    assert not [done for done in (listed, gone, refused) if key in done.stdout + done.stderr]


def test_a_key_goes_into_the_header_and_into_nothing_that_is_shown() -> None:
    with Client("http://127.0.0.1:9", key="expk_secret") as client:
        assert client._http.headers["Authorization"] == "Bearer expk_secret"
        assert "expk_secret" not in repr(client) + repr(client._http.headers) + str(vars(client))
    with Client("http://127.0.0.1:9") as client:
        assert "Authorization" not in client._http.headers


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "Schlüssel"])
def test_a_key_that_cannot_be_one_is_a_sentence_without_the_key(key: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    done = run("--key-file", str(file), "models", "list", EXPUNGE_URL="http://127.0.0.1:9")
    assert done.returncode == 3
    assert key not in done.stderr
    assert "Traceback" not in done.stderr


def test_say_whose_key_it_is() -> None:
    assert run("keys", "create", "--name", "n").returncode == 3
