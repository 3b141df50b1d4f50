"""The configuration reference says what the settings say, and leaves none out."""

from __future__ import annotations

import re
from pathlib import Path

from service.config import OTHERS, Settings, reference

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "configuration.md"


def test_the_reference_is_what_the_settings_say() -> None:
    """`python -m service.config > docs/reference/configuration.md` after a change."""
    assert REFERENCE.read_text() == reference()


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_variable_that_the_code_reads_is_in_the_reference() -> None:
    files = [p for folder in ("service", "worker/conductor") for p in (ROOT / folder).rglob("*.py")]
    code = [p.read_text() for p in files if p != ROOT / "service" / "config.py"]
    named = {name for text in code for name in re.findall(r"\bEXPUNGE_[A-Z_]*[A-Z]\b", text)}
    documented = set(re.findall(r"EXPUNGE_[A-Z_]+", REFERENCE.read_text()))
    assert named - documented == set()
    assert set(OTHERS) - named == set()  # and none is there that nothing reads
