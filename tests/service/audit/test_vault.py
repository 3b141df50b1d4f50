"""Private payloads: sealed for one place, opened by one key, and by nothing once that key is destroyed."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.audit.vault import FileKeyStore, KekGone, Unopenable, fresh_key, kek_id, month_of, unseal

VALUES = {"reason": "Jane Doe", "metadata": {"n": 0.25, "é": [1, None, True]}}
MONTH = kek_id("acme", datetime.now(UTC))


def test_what_was_sealed_is_opened_at_its_place_alone(tmp_path: Path) -> None:
    keys = FileKeyStore(tmp_path / "keks")
    sealed = fresh_key(keys, "acme").seal(VALUES, log_id=1, seq=7)
    assert b"Jane" not in sealed.ciphertext
    # numbers with a fraction are text in a canonical form that has no floats
    assert unseal(keys, sealed, log_id=1, seq=7) == {"reason": "Jane Doe", "metadata": {"n": "0.25", "é": [1, None, True]}}
    for log_id, seq in ((1, 8), (2, 7)):
        with pytest.raises(Unopenable):
            unseal(keys, sealed, log_id=log_id, seq=seq)
    for place in range(len(sealed.ciphertext)):
        changed = bytearray(sealed.ciphertext)
        changed[place] ^= 1
        with pytest.raises(Unopenable):
            unseal(keys, replace(sealed, ciphertext=bytes(changed)), log_id=1, seq=7)
    with pytest.raises(Unopenable):
        unseal(keys, replace(sealed, dek_wrapped=bytes(40)), log_id=1, seq=7)


def test_two_payloads_share_no_key_and_no_nonce(tmp_path: Path) -> None:
    keys = FileKeyStore(tmp_path)
    first, second = (fresh_key(keys, "acme").seal(VALUES, log_id=1, seq=7) for _ in range(2))
    assert first.kek_id == second.kek_id == MONTH
    assert first.dek_wrapped != second.dek_wrapped
    assert first.ciphertext[:12] != second.ciphertext[:12]


def test_a_destroyed_key_opens_nothing_and_does_not_come_back(tmp_path: Path) -> None:
    keys, other = FileKeyStore(tmp_path / "keks"), FileKeyStore(tmp_path / "keks")
    sealed = fresh_key(keys, "acme").seal(VALUES, log_id=1, seq=0)
    secret = (tmp_path / "keks" / f"{MONTH}.kek").read_bytes()
    held = os.open(tmp_path / "keks" / f"{MONTH}.kek", os.O_RDONLY)  # somebody who has the file open sees noise, too
    assert keys.destroy(MONTH)
    assert os.read(held, 64) != secret
    os.close(held)
    assert not keys.destroy(MONTH)
    for store in (keys, other):
        with pytest.raises(KekGone):
            unseal(store, sealed, log_id=1, seq=0)
        with pytest.raises(KekGone):
            fresh_key(store, "acme")
    assert [p for p in (tmp_path / "keks").iterdir() if secret in p.read_bytes()] == []


def test_keys_are_for_the_services_user_alone(tmp_path: Path) -> None:
    keys = FileKeyStore(tmp_path / "keks")
    fresh_key(keys, "acme")
    (file,) = (tmp_path / "keks").iterdir()
    assert stat.S_IMODE((tmp_path / "keks").stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_many_writers_make_one_key(tmp_path: Path) -> None:
    """Several hosts share the folder: the first file counts, and what each wrapped is opened by all."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        made = list(pool.map(lambda _: fresh_key(FileKeyStore(tmp_path / "keks"), "acme"), range(16)))
    assert [p.name for p in (tmp_path / "keks").iterdir()] == [f"{MONTH}.kek"]
    for key in made:
        assert FileKeyStore(tmp_path / "keks").unwrap(MONTH, key.wrapped) == key.dek


def test_a_store_without_the_key_or_with_a_torn_one_says_so(tmp_path: Path) -> None:
    keys = FileKeyStore(tmp_path)
    with pytest.raises(KekGone, match="not in this store"):
        keys.unwrap("acme.2026-10", bytes(40))
    (tmp_path / "acme.2026-10.kek").write_bytes(b"short")
    with pytest.raises(KekGone, match="expected 32 bytes"):
        keys.unwrap("acme.2026-10", bytes(40))


def test_a_keys_name_is_a_tenant_and_a_month() -> None:
    assert kek_id("acme", datetime.fromisoformat("2027-01-01T00:30:00+01:00")) == "acme.2026-12"  # months are UTC's
    assert month_of("acme.2026-12") == (2026, 12)
    for wrong in ("acme", "../x.2026-12", "acme.2026-12/..", "acme.202-12", ""):
        with pytest.raises(ValueError, match="expected the name"):
            month_of(wrong)
