"""Every host of a deployment verifies with the same seeds, which nobody knows before."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service import db
from service.requests.seeds import SECRET_BYTES, verification_secret, verification_seed

pytestmark = pytest.mark.usefixtures("database")


def secret_of(host: Path) -> bytes:
    with db.transaction() as session:
        return verification_secret(session, kept_on_host=host / "verification.secret")


def host(folder: Path, content: bytes) -> Path:
    """A host on which an earlier release has kept a secret of its own."""
    folder.mkdir()
    (folder / "verification.secret").write_bytes(content)
    return folder


def test_two_hosts_have_the_same_secret(tmp_path: Path) -> None:
    first = secret_of(tmp_path / "a")
    assert len(first) == SECRET_BYTES
    assert secret_of(tmp_path / "b") == first
    assert verification_seed(first, "ureq_1", 1) == verification_seed(secret_of(tmp_path / "c"), "ureq_1", 1)


def test_hosts_that_ask_at_once_have_the_same_secret(tmp_path: Path) -> None:
    ready = threading.Barrier(6)

    def ask(number: int) -> bytes:
        ready.wait()
        return secret_of(tmp_path / str(number))

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1


def test_what_an_earlier_release_kept_on_a_host_becomes_the_deployments_once(tmp_path: Path) -> None:
    a, b = host(tmp_path / "a", b"a" * SECRET_BYTES), host(tmp_path / "b", b"b" * SECRET_BYTES)
    assert [secret_of(h) for h in (a, b, tmp_path / "new")] == [b"a" * SECRET_BYTES] * 3


def test_a_secret_that_is_cut_short_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a verification secret of 32 bytes, got 3"):
        secret_of(host(tmp_path / "a", b"abc"))
    assert len(secret_of(tmp_path / "b")) == SECRET_BYTES  # and nothing of it was kept


def test_the_secret_never_changes(tmp_path: Path) -> None:
    first = secret_of(tmp_path / "a")
    changes = ["UPDATE shared_secret SET value = value", "DELETE FROM shared_secret"]
    postgresql = db.get_engine().dialect.name == "postgresql"
    again = "INSERT OR REPLACE INTO shared_secret SELECT * FROM shared_secret"
    changes.append("TRUNCATE shared_secret" if postgresql else again)
    for statement in changes:
        with pytest.raises(DBAPIError, match=r"secrets are kept|append-only"), db.transaction() as session:
            session.execute(text(statement))
    assert secret_of(tmp_path / "a") == first


def test_every_rung_and_every_request_has_a_seed_of_its_own() -> None:
    secret = b"s" * SECRET_BYTES
    seeds = {verification_seed(secret, request_id, rung) for request_id in ("a", "b") for rung in (1, 2, 3)}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert verification_seed(b"t" * SECRET_BYTES, "a", 1) not in seeds
