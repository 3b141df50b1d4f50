"""What docker-compose.yml promises: loopback only, the database migrated first, the key in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_the_api_is_published_on_loopback_only() -> None:
    assert SERVICES["api"]["environment"]["EXPUNGE_BIND_IN_CONTAINER"] == "1"
    assert SERVICES["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert SERVICES["api"]["command"] == ["expunge", "serve", "--host", "0.0.0.0"]


def test_only_the_api_may_bind_in_its_container_and_only_it_is_published() -> None:
    others = {name: s for name, s in SERVICES.items() if name != "api"}
    assert not [n for n, s in others.items() if "EXPUNGE_BIND_IN_CONTAINER" in s.get("environment", {})]
    assert not [n for n, s in others.items() if s.get("ports")]


def test_everything_that_stays_up_has_a_health_check() -> None:
    assert [n for n, s in SERVICES.items() if "healthcheck" not in s and s.get("restart") != "no"] == []


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_migration_runs_before(name: str) -> None:
    assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_only_the_signer_mounts_the_key() -> None:
    holders = [n for n, s in SERVICES.items() if any(v.startswith("keys:") for v in s.get("volumes", []))]
    assert holders == ["signer"]


def test_the_logs_verifier_keys_reach_those_who_need_them_and_its_record_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.config import Settings

    for key, value in SERVICES["signer"]["environment"].items():
        monkeypatch.setenv(key, str(value))
    settings = Settings()
    assert settings.log_folder == Path("/keys/ledger")
    assert settings.log_keys_file == Path("/signer/ledger.vkeys")
    for name in ("api", "worker"):
        monkeypatch.delenv("EXPUNGE_SIGNING_KEY", raising=False)
        for key, value in SERVICES[name]["environment"].items():
            monkeypatch.setenv(key, str(value))
        assert Settings().log_keys_file == settings.log_keys_file
        assert any(volume.startswith("signer:/signer") for volume in SERVICES[name]["volumes"])


def test_every_expunge_setting_in_the_file_exists() -> None:
    from service.config import Settings

    known = {f"EXPUNGE_{name.upper()}" for name in Settings.model_fields}
    used = {key for s in SERVICES.values() for key in s.get("environment", {}) if key.startswith("EXPUNGE_")}
    assert used - known == set()


def test_no_password_is_written_down() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert "PASSWORD:?set a password" in text
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key or "SECRET" in key:
                assert str(value).startswith("${EXPUNGE_"), key
