"""What docker-compose.yml promises: loopback only, the database migrated first, the key in one place."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import psycopg
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sqlalchemy import make_url

from tests.service.storage_server import KEY, SECRET, client

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SCHEMA = Path(__file__).parent / "schemas" / "compose-spec.json"
OURS = {name: s for name, s in SERVICES.items() if str(s["image"]).startswith("expunge-")}
WORKERS = ("worker-cpu", "worker-gpu")


def test_the_file_is_of_the_compose_specification() -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(COMPOSE, schema, cls=jsonschema.Draft7Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {**COMPOSE, "services": {"api": {"imagine": "expunge-service"}}}, schema, cls=jsonschema.Draft7Validator
        )


def test_each_image_is_built_by_one_service_of_a_profile() -> None:
    """Compose builds side by side, and a second build of a name fails: on the very first `up` there is."""
    for profile in ("cpu", "gpu"):
        started = [s for s in OURS.values() if profile in s.get("profiles", [profile])]
        built = [s["image"] for s in started if "build" in s]
        assert sorted(built) == sorted({s["image"] for s in started}) == ["expunge-service", "expunge-worker"]


def test_a_new_store_gets_the_buckets_that_are_used(s3_url: str, tmp_path: Path) -> None:
    """Nobody else makes them: the first run would end as `store_refused`."""
    environment = SERVICES["buckets"]["environment"]
    command = [sys.executable, *SERVICES["buckets"]["command"][1:]]
    surroundings = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "EXPUNGE_STORE_ENDPOINT_URL": s3_url}
    used = {urlsplit(environment["EXPUNGE_STORE_URL"]).netloc, *re.findall('"s3://([a-z]+)', environment["EXPUNGE_SOURCES"])}
    for _ in range(2):  # at every start
        subprocess.run(command, env=surroundings, check=True)
    assert used == {"expunge", "models"}
    assert used <= {bucket["Name"] for bucket in client(s3_url).list_buckets()["Buckets"]}
    for name in ("api", *WORKERS):
        assert SERVICES[name]["depends_on"]["buckets"] == {"condition": "service_completed_successfully"}


def test_a_worker_has_time_to_drain_and_memory_that_its_ranks_share() -> None:
    for name in WORKERS:
        minutes = int(SERVICES[name]["stop_grace_period"].removesuffix("m"))
        assert float(SERVICES[name]["environment"]["EXPUNGE_STOP_GRACE_SECONDS"]) + 30 <= minutes * 60
        assert SERVICES[name]["shm_size"] == "8gb"


def test_what_services_refer_to_is_there() -> None:
    for name, service in SERVICES.items():
        mounted = {secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", [])}
        assert mounted <= set(COMPOSE["secrets"]), name
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        volumes = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("./")}
        assert volumes <= set(COMPOSE["volumes"]), name


def test_our_containers_cannot_write_their_root_nor_gain_rights() -> None:
    assert set(OURS) == {"buckets", "migrate", "logins", "signer", "api", "exporter", *WORKERS}
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
    assert all(service["security_opt"] == ["no-new-privileges:true"] for service in SERVICES.values())
    for image in ("service", "worker"):
        lines = (ROOT / "deploy" / f"{image}.Dockerfile").read_text().splitlines()
        assert [line for line in lines if line.startswith("USER ")] == ["USER expunge"]


def test_there_is_a_worker_for_machines_with_gpus_and_one_for_those_without() -> None:
    assert [SERVICES[name]["profiles"] for name in WORKERS] == [["cpu"], ["gpu"]]
    [device] = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_nothing_in_redis_may_be_evicted() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_the_images_without_a_worker_hold_no_torch() -> None:
    """Neither by what is installed, nor by what that requires in turn."""
    [install] = [line for line in (ROOT / "deploy" / "service.Dockerfile").read_text().splitlines() if "pip install" in line]
    extras = set(re.findall(r"\.\[([a-z0-9,]+)\]", install)[0].split(","))
    assert extras == {"service", "s3", "otel"}
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [Requirement(line) for extra in extras for line in optional[extra]]
    found: set[str] = set()
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform, or of an extra that is not installed here
            continue
        environments = [{"extra": extra} for extra in (one.extras or {""})]
        parsed = [Requirement(line) for line in required]
        wanted += [r for r in parsed if r.marker is None or any(r.marker.evaluate(e) for e in environments)]
    assert {"fastapi", "prometheus-client", "opentelemetry-sdk", "boto3"} <= found
    assert not found & {"torch", "diffusers", "transformers", "torchmetrics", "scikit-learn", "nvidia-cublas"}


def test_the_api_is_published_on_loopback_only() -> None:
    assert SERVICES["api"]["environment"]["EXPUNGE_BIND_IN_CONTAINER"] == "1"
    assert SERVICES["api"]["ports"] == ["127.0.0.1:8000:8000", "127.0.0.1:9465:9465"]
    assert SERVICES["api"]["command"] == ["expunge", "serve", "--host", "0.0.0.0"]


def test_only_the_api_may_bind_in_its_container_and_beside_it_only_the_exporter_is_published() -> None:
    others = {name: s for name, s in SERVICES.items() if name != "api"}
    assert not [n for n, s in others.items() if "EXPUNGE_BIND_IN_CONTAINER" in s.get("environment", {})]
    assert {n: s["ports"] for n, s in others.items() if s.get("ports")} == {"exporter": ["127.0.0.1:9464:9464"]}


def test_everything_that_stays_up_has_a_health_check() -> None:
    assert [n for n, s in SERVICES.items() if "healthcheck" not in s and s.get("restart") != "no"] == []


@pytest.mark.parametrize("name", ["api", "exporter", *WORKERS])
def test_the_migration_runs_before_and_makes_the_login(name: str) -> None:
    assert SERVICES[name]["depends_on"]["logins"] == {"condition": "service_completed_successfully"}
    assert SERVICES["logins"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_only_who_works_with_the_database_can_open_it_and_only_the_migration_as_its_owner() -> None:
    holders = {name for name, s in OURS.items() if "expunge_database_url" in s["secrets"]}
    assert holders == {"logins", "api", "exporter", *WORKERS}
    owners = {name for name, s in SERVICES.items() if "expunge_owner_database_url" in json.dumps(s.get("secrets", []))}
    assert owners == {"migrate", "logins"}
    assert SERVICES["migrate"]["secrets"] == [{"source": "expunge_owner_database_url", "target": "expunge_database_url"}]


def test_the_login_is_made_with_the_password_that_was_drawn_and_changes_no_entry(
    postgresql_server: str, postgresql_template: str, tmp_path: Path
) -> None:
    command = [sys.executable, *SERVICES["logins"]["command"][1:]]
    server = make_url(postgresql_server).set(drivername="postgresql")
    mark = uuid.uuid4().hex[:8]
    name, login = f"expunge_{mark}", f"expunge_service_{mark}"
    environment = {**os.environ, "EXPUNGE_SECRETS_DIR": str(tmp_path)}
    owner = server.set(database=name)
    (tmp_path / "expunge_owner_database_url").write_text(owner.render_as_string(False) + "\n")
    with psycopg.connect(server.render_as_string(False), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {postgresql_template}".encode())
        try:
            held = []
            for password in ("first", "it's-another"):
                own = server.set(database=name, username=login, password=password).render_as_string(False)
                (tmp_path / "expunge_database_url").write_text(own)
                subprocess.run(command, env=environment, check=True)
                held += admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [login]).fetchall()
            assert [str(one).startswith("SCRAM-SHA-256$") for (one,) in held] == [True, True]
            assert held[0] != held[1]  # this server asks for no password, so that none can be tried
            for useless in (owner, make_url("postgresql://somebody@postgres/expunge")):
                (tmp_path / "expunge_database_url").write_text(useless.render_as_string(False))
                refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                assert refused.returncode == 1
                assert "another user than the owner's" in refused.stderr
            with psycopg.connect(own) as connection:
                assert connection.execute("SELECT count(*) FROM ledger_entry").fetchone() == (0,)
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("DELETE FROM ledger_entry")
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            admin.execute(f"DROP ROLE IF EXISTS {login}".encode())


def test_the_signer_is_healthy_when_somebody_listens_and_not_when_a_socket_was_left_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    check = [part.replace("/signer/signer.sock", path) for part in SERVICES["signer"]["healthcheck"]["test"][1:]]

    def healthy() -> bool:
        return subprocess.run([sys.executable, *check[1:]], capture_output=True, check=False).returncode == 0

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        assert healthy()
    assert Path(path).is_socket()
    assert not healthy()


def test_only_the_signer_mounts_the_key() -> None:
    holders = [n for n, s in SERVICES.items() if any(v.startswith("keys:") for v in s.get("volumes", []))]
    assert holders == ["signer"]


def test_the_logs_verifier_keys_reach_those_who_need_them_and_its_record_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.config import Settings

    for key, value in SERVICES["signer"]["environment"].items():
        if not str(value).startswith("${"):
            monkeypatch.setenv(key, str(value))
    settings = Settings()
    assert settings.log_folder == Path("/keys/ledger")
    assert settings.log_keys_file == Path("/signer/ledger.vkeys")
    for name in ("api", "exporter", *WORKERS):
        monkeypatch.delenv("EXPUNGE_SIGNING_KEY", raising=False)
        for key, value in SERVICES[name]["environment"].items():
            if not str(value).startswith("${"):
                monkeypatch.setenv(key, str(value))
        assert Settings().log_keys_file == settings.log_keys_file
        assert any(volume.startswith("signer:/signer") for volume in SERVICES[name]["volumes"])


def test_every_expunge_setting_in_the_file_exists() -> None:
    from service.config import SECRETS_DIR, Settings

    known = {f"EXPUNGE_{name.upper()}" for name in Settings.model_fields} | {SECRETS_DIR}
    used = {key for s in SERVICES.values() for key in s.get("environment", {}) if key.startswith("EXPUNGE_")}
    assert used - known == set()


def test_no_password_is_written_down_or_in_our_environment() -> None:
    for name, service in SERVICES.items():
        for key in service.get("environment", {}):
            assert not re.search("PASSWORD$|SECRET|ACCESS_KEY|DATABASE_URL", key.removeprefix("EXPUNGE_SECRETS_DIR")), (
                name,
                key,
            )
    assert all(secret["file"].startswith("secrets/") for secret in COMPOSE["secrets"].values())


def test_the_secrets_that_are_mounted_are_drawn_once_and_never_again(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "secrets.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "deploy" / "secrets.sh", script)
    subprocess.run(["sh", str(script)], check=True)
    drawn = {p.name: p.read_text() for p in (tmp_path / "secrets").iterdir()}
    files = {secret["file"] for secret in COMPOSE["secrets"].values()} | set(SERVICES["store"]["env_file"])
    assert files == {f"secrets/{name}" for name in drawn}
    assert re.fullmatch("[0-9a-f]{48}", drawn["postgres_password"])
    assert drawn["expunge_owner_database_url"] == f"postgresql://expunge:{drawn['postgres_password']}@postgres/expunge"
    assert re.fullmatch("postgresql://expunge_service:[0-9a-f]{48}@postgres/expunge", drawn["expunge_database_url"])
    assert drawn["postgres_password"] not in drawn["expunge_database_url"]
    assert drawn["store.env"].split("ROOT_SECRET_KEY=")[1].strip() == drawn["store_credentials"].split("= ")[-1].strip()
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert subprocess.run(["sh", str(script)], capture_output=True, check=False).returncode == 1
    assert {p.name: p.read_text() for p in (tmp_path / "secrets").iterdir()} == drawn
