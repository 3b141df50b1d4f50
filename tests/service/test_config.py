"""The configuration reference says what the settings say, and leaves none out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service import db
from service.config import OTHERS, SECRETS_DIR, Settings, get_settings, reference

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "configuration.md"


def test_the_reference_is_what_the_settings_say() -> None:
    """`python -m service.config > docs/reference/configuration.md` after a change."""
    assert REFERENCE.read_text() == reference()


def test_a_default_is_written_as_it_would_be_set() -> None:
    rows = dict(re.findall(r"^\| `EXPUNGE_(\w+)` \| (\S.*?) \|", reference(), re.M))
    assert (rows["JWT_ROLE_MAP"], rows["JWT_ALGORITHMS"], rows["SOURCES"]) == ("`{}`", '`["RS256", "ES256"]`', "`[]`")
    assert (rows["BIND_IN_CONTAINER"], rows["DATABASE_URL"], rows["PORT"]) == ("`false`", "unset", "`8000`")


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_variable_that_the_code_reads_is_in_the_reference() -> None:
    files = [p for folder in ("service", "worker/conductor") for p in (ROOT / folder).rglob("*.py")]
    code = [p.read_text() for p in files if p != ROOT / "service" / "config.py"]
    named = {name for text in code for name in re.findall(r"\bEXPUNGE_[A-Z_]*[A-Z]\b", text)}
    documented = set(re.findall(r"EXPUNGE_[A-Z_]+", REFERENCE.read_text()))
    assert named - documented == set()
    assert set(OTHERS) - named - {SECRETS_DIR} == set()  # and none is there that nothing reads


def test_a_setting_that_the_environment_lacks_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    monkeypatch.delenv("EXPUNGE_DATABASE_URL", raising=False)
    monkeypatch.setenv("EXPUNGE_TENANT", "of-the-environment")
    (tmp_path / "expunge_database_url").write_text("postgresql://somebody:secret@host/name\n")
    (tmp_path / "expunge_tenant").write_text("of-the-file")
    (tmp_path / "store_credentials").write_text("somebody else's")
    db.reset()
    try:
        settings = get_settings()
        assert (settings.database, settings.tenant) == ("postgresql://somebody:secret@host/name", "of-the-environment")
        assert "secret" not in repr(settings)
    finally:
        monkeypatch.undo()
        db.reset()
