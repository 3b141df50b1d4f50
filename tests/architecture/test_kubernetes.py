"""deploy/kubernetes: valid objects that refer to one another, restricted pods, keys in one place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text

from service import db
from service.config import SECRETS_DIR, Settings
from service.requests.lifecycle import HOLDS_LINEAGE
from tests.support import ask, register

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.31"
FILES = sorted(p for p in FOLDER.rglob("*.yaml") if p.name != "kustomization.yaml")
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))
OBJECTS: list[dict[str, Any]] = [one for path in FILES for one in yaml.safe_load_all(path.read_text())]
NATIVE = [one for one in OBJECTS if "keda.sh" not in one["apiVersion"]]
KEDA = [one for one in OBJECTS if "keda.sh" in one["apiVersion"]]
WORKLOADS = {one["metadata"]["name"]: one for one in NATIVE if one["kind"] in ("Deployment", "StatefulSet", "Job")}


def names(kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in OBJECTS if one["kind"] == kind}


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = WORKLOADS[name]["spec"]["template"]["spec"]
    return spec


def containers(name: str) -> list[dict[str, Any]]:
    return [*pod(name)["containers"], *pod(name).get("initContainers", [])]


@pytest.mark.parametrize("one", NATIVE, ids=lambda one: f"{one['kind']}/{one['metadata']['name']}")
def test_every_object_is_valid(one: dict[str, Any]) -> None:
    kubernetes_validate.validate(one, VERSION, strict=True)


def test_an_object_that_is_not_valid_would_be_seen() -> None:
    wrong = {**WORKLOADS["expunge-api"], "spec": {**WORKLOADS["expunge-api"]["spec"], "replicaz": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda p: p.parent.name)
def test_what_a_kustomization_names_is_there_and_everything_there_is_named(path: Path) -> None:
    named = yaml.safe_load(path.read_text())["resources"]
    assert sorted(named) == sorted(p.name for p in path.parent.glob("*.yaml") if p.name != "kustomization.yaml")
    if path.parent.name == "base":
        images = {image["name"] for image in yaml.safe_load(path.read_text())["images"]}
        assert images == {c["image"] for name in WORKLOADS for c in containers(name)}


def references(name: str) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod(name)["serviceAccountName"]
    for volume in pod(name)["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"]
        if secret := volume.get("secret"):
            yield "Secret", secret["secretName"]
    for container in containers(name):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    for kind, wanted in references(name):
        assert wanted in names(kind), f"{kind}/{wanted}"
    own = {v["metadata"]["name"] for v in WORKLOADS[name]["spec"].get("volumeClaimTemplates", [])}
    volumes = {v["name"] for v in pod(name)["volumes"]} | own
    for container in containers(name):
        assert {m["name"] for m in container["volumeMounts"]} <= volumes
        ports = {p["name"] for p in container.get("ports", [])}
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            asked = container.get(probe, {})
            port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
            assert port is None or port in ports


def test_services_budgets_and_policies_select_pods() -> None:
    labels = [WORKLOADS[name]["spec"]["template"]["metadata"]["labels"] for name in WORKLOADS]
    for one in NATIVE:
        if one["kind"] == "Service":
            chosen = one["spec"]["selector"]
        elif one["kind"] in ("PodDisruptionBudget",):
            chosen = one["spec"]["selector"]["matchLabels"]
        elif one["kind"] == "NetworkPolicy":
            chosen = one["spec"]["podSelector"].get("matchLabels", {})
        else:
            continue
        assert [found for found in labels if chosen.items() <= found.items()], one["metadata"]["name"]
    for name, one in WORKLOADS.items():
        if one["kind"] != "Job":
            assert one["spec"]["selector"]["matchLabels"].items() <= one["spec"]["template"]["metadata"]["labels"].items(), name


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_every_pod_is_restricted(name: str) -> None:
    """Pod Security Standards, level restricted; and a root that cannot be written, and no token."""
    spec = pod(name)
    assert spec["automountServiceAccountToken"] is False
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["seccompProfile"]["type"]) == (
        True,
        "RuntimeDefault",
    )
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not [v for v in spec["volumes"] if "hostPath" in v]
    for container in containers(name):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]


def test_service_accounts_have_no_tokens() -> None:
    assert len(names("ServiceAccount")) == len(WORKLOADS)
    assert all(one["automountServiceAccountToken"] is False for one in NATIVE if one["kind"] == "ServiceAccount")


def test_every_expunge_setting_exists() -> None:
    known = {f"EXPUNGE_{name.upper()}" for name in Settings.model_fields} | {SECRETS_DIR}
    given = {key for one in NATIVE if one["kind"] == "ConfigMap" for key in one["data"]}
    given |= {variable["name"] for name in WORKLOADS for c in containers(name) for variable in c.get("env", [])}
    assert {name for name in given if name.startswith("EXPUNGE_")} - known == set()
    secrets = {key for one in NATIVE if one["kind"] == "Secret" for key in one["stringData"]}
    assert {key.upper() for key in secrets if key.startswith("expunge_")} <= known


def test_the_settings_are_valid_together(monkeypatch: pytest.MonkeyPatch) -> None:
    [config] = [one for one in NATIVE if one["kind"] == "ConfigMap"]
    for key, value in config["data"].items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert (settings.auth, settings.log_keys_file) == ("required", Path("/signer/ledger.vkeys"))


def test_only_the_signer_sees_the_keys_and_it_sees_no_database() -> None:
    holders = [name for name in WORKLOADS for v in pod(name)["volumes"] if "signing-keys" in str(v)]
    assert holders == ["expunge-signer"]
    [secret] = [v["secret"] for v in pod("expunge-signer")["volumes"] if "secret" in v]
    assert [item["key"] for item in secret["items"]] == ["store_credentials"]
    [policy] = [one for one in NATIVE if (one["kind"], one["metadata"]["name"]) == ("NetworkPolicy", "signer")]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy["spec"]
    ports = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 443]  # names, and the store


def test_every_pod_has_a_network_policy_below_one_that_denies_all() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in NATIVE if one["kind"] == "NetworkPolicy"}
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert {f"expunge-{name}" for name in policies} == set(WORKLOADS)


def test_the_owner_of_the_tables_logs_in_to_migrate_and_for_nothing_else() -> None:
    mounted = {name: {v["secret"]["secretName"] for v in pod(name)["volumes"] if "secret" in v} for name in WORKLOADS}
    assert mounted.pop("expunge-migrate") == {"expunge-migrate"}
    assert set(map(frozenset, mounted.values())) == {frozenset({"expunge"})}
    urls = {one["metadata"]["name"]: one["stringData"]["expunge_database_url"] for one in NATIVE if one["kind"] == "Secret"}
    assert {name: make_url(url).username for name, url in urls.items()} == {
        "expunge-migrate": "expunge_owner",
        "expunge": "expunge_service",
    }


def test_a_worker_has_time_to_drain_and_a_gpu() -> None:
    [config] = [one for one in NATIVE if one["kind"] == "ConfigMap"]
    grace = pod("expunge-worker")["terminationGracePeriodSeconds"]
    assert grace >= 300
    assert float(config["data"]["EXPUNGE_STOP_GRACE_SECONDS"]) + 30 <= grace
    assert containers("expunge-worker")[0]["resources"]["limits"]["nvidia.com/gpu"] >= 1


def test_the_queues_length_is_a_query_that_both_schemas_answer(database: str) -> None:
    [scaled] = [one for one in KEDA if one["kind"] == "ScaledObject"]
    [authentication] = [one for one in KEDA if one["kind"] == "TriggerAuthentication"]
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert scaled["spec"]["scaleTargetRef"]["name"] in WORKLOADS
    query = trigger["metadata"]["query"]
    assert all(f"'{status}'" in query for status in {"queued", *HOLDS_LINEAGE})
    with db.reading() as session:
        assert session.execute(text(query)).scalar_one() == 0
    assert scaled["spec"]["minReplicaCount"] >= 1  # nobody else has the ledger signed, sends webhooks or watches deadlines


def test_requests_that_wait_for_one_another_call_for_one_worker(client: TestClient, tmp_path: Path) -> None:
    [scaled] = [one for one in KEDA if one["kind"] == "ScaledObject"]
    query = text(scaled["spec"]["triggers"][0]["metadata"]["query"])
    model = register(client, tmp_path)
    for name in (0, 1, 2):
        assert ask(client, model, name).status_code == 202
    with db.reading() as session:
        assert session.execute(query).scalar_one() == 1


def test_the_signer_is_probed_by_a_connection_and_not_by_its_file() -> None:
    [signer] = containers("expunge-signer")
    for probe in ("livenessProbe", "readinessProbe"):
        assert "connect('/signer/signer.sock')" in signer[probe]["exec"]["command"][-1]
