"""Settings: one typed field per knob, read from the environment (`EXPUNGE_…`), secrets as `SecretStr`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
SECRETS_DIR = "EXPUNGE_SECRETS_DIR"
MEMORY_BROKER = "memory://"
RATE_LIMITS = {"reads": "6000/minute", "writes": "600/minute", "denied": "60/minute"}
LONGEST_SOCKET_PATH = 100
"""sun_path holds 108 bytes on Linux and 104 on macOS, the trailing zero included."""


class Settings(BaseSettings):
    """Every knob of the service, the worker's conductor and the signer. The engine reads none of them."""

    model_config = SettingsConfigDict(env_prefix="EXPUNGE_", extra="ignore")

    data_dir: Path = Field(default=Path("expunge-data"), description="database, store, keys and job directories of one host")
    database_url: SecretStr = Field(default=SecretStr(""), description="SQLAlchemy URL; empty: SQLite in data_dir")
    broker_url: SecretStr = Field(default=SecretStr(MEMORY_BROKER), description="Celery broker; memory:// is the embedded mode")
    store_url: str = Field(
        default="", description="the content-addressed store: file:///folder or s3://bucket/prefix; empty: data_dir/store"
    )
    store_endpoint_url: str = Field(
        default="", description="of an S3-compatible store that is not Amazon's; credentials are the SDK's own business"
    )
    store_redirect_seconds: int = Field(
        default=0,
        ge=0,
        le=3600,
        description="downloads are sent on to the bucket, at a signed URL that is good for so long; 0: all bytes pass the API",
    )
    store_grace_days: float = Field(
        default=7.0, ge=1, description="what no row names is deleted from the store once nobody has written it for so long"
    )
    sources: tuple[str, ...] = Field(
        default=(),
        description="JSON list of folders and s3://bucket/prefix that models and datasets may be registered from and are read "
        "from; unset: all of this disk and every bucket where `auth` is `local`, else only what lies in data_dir",
    )
    tenant: str = Field(default="default", pattern=r"^[a-z0-9-]{1,64}$", description="written into every audit entry")

    auth: Literal["local", "required"] = Field(
        default="local",
        description="local: whoever reaches the API is its one local user, so it listens on loopback alone; required: every "
        "call needs an API key or a token",
    )
    jwt_issuer: str = Field(default="", max_length=200, description="`iss` of tokens that are taken as bearer; unset: none are")
    jwt_audience: str = Field(default="", description="`aud` that such tokens must have")
    jwt_jwks_url: str = Field(default="", description="https:// address of the issuer's JSON Web Key Set")
    jwt_algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384"], ...] = Field(
        default=("RS256", "ES256"), min_length=1, description="signature algorithms that are taken, a JSON list"
    )
    jwt_leeway_seconds: int = Field(default=30, ge=0, le=120, description="by which the clocks of issuer and API may differ")
    jwt_roles_claim: str = Field(default="roles", description="claim with the roles, a list; a dot goes into an object")
    jwt_role_map: dict[str, str] = Field(
        default_factory=dict, description="JSON object: the issuer's names of our roles; empty: they have ours"
    )
    jwt_project_claim: str = Field(
        default="project", description="claim with the project, which must exist; unset: everybody's is `default`"
    )

    host: str = Field(default="127.0.0.1", description="address of the API; only loopback unless `auth` is `required`")
    port: int = Field(default=8000, ge=0, le=65535, description="port of the API")
    api_workers: int = Field(
        default=1, ge=1, le=64, description="processes of one `expunge serve`, about one a core; several need PostgreSQL"
    )
    bind_in_container: bool = Field(
        default=False,
        description="allow 0.0.0.0 inside a container whose port is published on the host's loopback only",
    )
    local_hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9._-]+$")], ...] = Field(
        default=(),
        description="JSON list of names, in lower case and without a port, that the API may be called by besides loopback's "
        "where `auth` is `local`: behind a proxy, or from another container",
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="address of /metrics, which needs no key and holds no personal data"
    )
    metrics_port: int = Field(default=9464, ge=0, le=65535, description="port of the exporter, `expunge metrics`")
    api_metrics_port: int = Field(default=0, ge=0, le=65535, description="port of the API's own /metrics; 0: none")
    max_body_bytes: int = Field(
        default=8_388_608, ge=1024, description="larger request bodies get 413; 100,000 sample ids of 80 bytes fit"
    )

    rate_limit_reads: str | None = Field(
        default=None,
        description="GET, HEAD and OPTIONS of one principal, in `limits` notation, several with `;`; unset: `6000/minute` "
        "where `auth` is `required`, else none; empty: none",
    )
    rate_limit_writes: str | None = Field(
        default=None, description="all other calls of one; unset: `600/minute` where the same"
    )
    rate_limit_denied: str | None = Field(
        default=None,
        description="calls without good credentials from one address, IPv6 from one /64; unset: `60/minute` where the same",
    )

    def rate_limit(self, kind: Literal["reads", "writes", "denied"]) -> str:
        """The limit that is in force, as text; empty: none. Callers with keys are limited unless said otherwise."""
        said: str | None = getattr(self, f"rate_limit_{kind}")
        return said if said is not None else RATE_LIMITS[kind] if self.auth == "required" else ""

    @model_validator(mode="after")
    def _rate_limits_are_limits(self) -> Self:
        for text in filter(None, (self.rate_limit_reads, self.rate_limit_writes, self.rate_limit_denied)):
            from limits import parse_many  # its import takes long, and hardly anybody sets one

            if any(item.amount < 1 for item in parse_many(text)):
                raise ValueError("rate limits allow one call at least")
        return self

    approvals: Literal["solo"] | Annotated[int, Field(ge=1, le=9)] = Field(
        default="solo",
        description="others who must approve an unlearn request before it runs, 1 to 9; a project may ask for more. solo: "
        "nobody, and the certificate says so",
    )

    @property
    def approvals_required(self) -> int:
        return 0 if self.approvals == "solo" else self.approvals

    @model_validator(mode="after")
    def _there_is_somebody_to_approve(self) -> Self:
        if self.approvals != "solo" and self.auth != "required":
            raise ValueError("approvals go with auth=required: a local user is nobody else, so no request would ever run")
        return self

    policy_file: Path | None = Field(
        default=None,
        description="verification policy of every request, which none may replace by another; unset: see /policies",
    )
    ranks: int = Field(default=0, ge=0, description="most ranks of one run on this worker; 0: all GPUs, or 1 without")
    gpu_class: str = Field(
        default="default",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,31}(,[a-z0-9][a-z0-9._-]{0,31})*$",
        description="classes of requests that this worker takes, separated by commas; a request that names none is `default`",
    )
    max_active_requests: int = Field(default=0, ge=0, description="requests of a project that may run at once; 0: any number")
    max_queued_requests: int = Field(default=0, ge=0, description="of a project that may wait; 0: any number")
    expected_run_seconds: float = Field(
        default=3600.0, gt=0, description="of a run, where no past run of the same family and method tells"
    )
    deadline_margin_seconds: float = Field(
        default=86_400.0, ge=0, description="kept free between a run's expected end and its legal deadline"
    )
    max_attempts: int = Field(default=3, ge=1, description="attempts that may die before a request fails")
    lease_seconds: float = Field(default=60.0, gt=0, description="a worker silent for so long has lost its request")
    renew_seconds: float = Field(default=5.0, gt=0, description="between two signs of life; at most half of lease_seconds")
    sweep_seconds: float = Field(default=1.0, gt=0, description="pause between two looks at the queue")
    stall_seconds: float = Field(default=900.0, gt=0, description="alive but without progress for so long: killed")
    fisher_cache_mb: int = Field(default=4096, ge=0, description="MiB of Fisher information kept between runs; 0: none")
    metric_weights: Path | None = Field(
        default=None,
        description="folder of networks for FID, KID, IS and CLIP similarity of drawn or completed images; unset: none",
    )
    stop_grace_seconds: float = Field(
        default=10.0,
        gt=0,
        description="that an engine has to save a step checkpoint when its worker drains or its request is paused, before it "
        "is killed; less than whoever stops the worker waits. A cancelled one has 10 s at most",
    )

    signer_socket: str = Field(default="", description="the signer's local socket; empty: data_dir/signer.sock")
    signing_key: Path | None = Field(
        default=None, description="PEM of the signer's P-256 key; unset: data_dir/keys/signing.pem"
    )
    public_key: Path | None = Field(default=None, description="where the signer leaves its public half; unset: beside the key")
    signing_key_uri: str = Field(
        default="",
        description="a P-256 key that stays where it is, by securesystemslib's URI (hv:, awskms:, gcpkms:, azurekms:, hsm:); "
        "its public half is the file that public_key names",
    )
    four_eyes: Literal["solo", "two"] = Field(
        default="solo",
        description="two: what cannot be undone needs a second person; solo: one is enough, and the record says so",
    )

    ledger_origin: str = Field(
        default="",
        description="name of the ledger in its checkpoints and proofs, for ever; unset: expunge.local/ledger/ and a random id",
    )
    ledger_keys: Path | None = Field(
        default=None, description="the log signer's folder: Ed25519 keys, and what it signed; unset: ledger/ beside signing_key"
    )
    ledger_url: str = Field(default="", description="where others find this ledger's /audit, written into its policy")
    ledger_witnesses: Path | None = Field(
        default=None,
        description="witnesses, groups and quorum, a C2SP tlog-policy without log lines; those with a URL are asked to cosign; "
        "unset: quorum none",
    )
    ledger_checkpoint_seconds: float = Field(default=60.0, gt=0, description="between two checkpoints of a growing ledger")
    ledger_checkpoint_idle_seconds: float = Field(default=86_400.0, gt=0, description="the same, while nothing is added")
    ledger_tsa_url: str = Field(default="", description="RFC 3161 time-stamping authority, asked once a day; unset: none")
    ledger_tsa_certificates: Path | None = Field(
        default=None, description="PEM of the authority's root and intermediate certificates: what its answers are checked with"
    )

    @model_validator(mode="after")
    def _time_stamps_can_be_checked(self) -> Self:
        if bool(self.ledger_tsa_url) != (self.ledger_tsa_certificates is not None):
            raise ValueError("ledger_tsa_url and ledger_tsa_certificates go together: an unchecked time stamp proves nothing")
        return self

    webhook_allow_loopback: bool = Field(
        default=False, description="webhooks may go to this host, and without TLS; for tests, never in production"
    )

    kek_dir: Path | None = Field(
        default=None,
        description="folder of the keys that personal data of the ledger are sealed with, the same for every host and no part "
        "of the database's backups; unset: data_dir/keks",
    )
    retain_private_months: int = Field(
        default=24, ge=1, le=1200, description="months after its request was closed and answered that private data are shredded"
    )

    allow_failpoints: bool = Field(
        default=False, description="let EXPUNGE_FAILPOINTS make disk and store fail on demand; for tests, never in production"
    )

    @model_validator(mode="after")
    def _store_urls_hold_no_secrets(self) -> Self:
        store, endpoint = urlsplit(self.store_url), urlsplit(self.store_endpoint_url)
        if store.scheme not in ("", "file", "s3"):
            raise ValueError("store_url is file:///folder or s3://bucket/prefix")
        if "@" in store.netloc + endpoint.netloc or store.query or endpoint.query:
            raise ValueError("store_url and store_endpoint_url hold no credentials: the SDK finds them where it always does")
        if self.store_endpoint_url and endpoint.scheme not in ("http", "https"):
            raise ValueError("store_endpoint_url is an http:// or https:// URL")
        return self

    @model_validator(mode="after")
    def _sources_are_places(self) -> Self:
        for one in self.sources:
            url = urlsplit(one)
            bucket = url.scheme == "s3" and bool(url.netloc) and not url.query and "@" not in url.netloc
            folder = url.scheme in ("", "file") and not url.netloc and url.path.startswith("/")
            if not (bucket or folder) or {".", ".."} & set(url.path.split("/")):
                raise ValueError("sources are absolute folders and s3://bucket/prefix, without `..`")
        return self

    @model_validator(mode="after")
    def _tokens_can_be_checked(self) -> Self:
        if len({bool(self.jwt_issuer), bool(self.jwt_audience), bool(self.jwt_jwks_url)}) > 1:
            raise ValueError("jwt_issuer, jwt_audience and jwt_jwks_url go together: a token is checked against all of them")
        address = urlsplit(self.jwt_jwks_url)
        if self.jwt_jwks_url and not (address.scheme == "https" or (address.scheme == "http" and address.hostname in LOOPBACK)):
            raise ValueError("jwt_jwks_url must be https://, or http:// on this host: whoever could change it could be anybody")
        return self

    @model_validator(mode="after")
    def _lease_outlives_renewal(self) -> Self:
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("lease_seconds must be at least twice renew_seconds: one lost renewal is no death")
        return self

    @property
    def embedded(self) -> bool:
        """True when the bell is Celery's in-memory broker, so worker and sweeper must share a process."""
        return self.broker_url.get_secret_value().startswith(MEMORY_BROKER)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL, secrets included: never log it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir.resolve() / 'expunge.db'}"

    @property
    def store(self) -> str:
        return self.store_url or (self.data_dir.resolve() / "store").as_uri()

    @property
    def gpu_classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.gpu_class.split(",")))

    @property
    def jobs_dir(self) -> Path:
        return self.data_dir.resolve() / "jobs"

    @property
    def judges_dir(self) -> Path:
        return self.data_dir.resolve() / "judges"

    @property
    def fishers_dir(self) -> Path:
        return self.data_dir.resolve() / "fishers"

    @property
    def kek_folder(self) -> Path:
        return self.kek_dir or self.data_dir.resolve() / "keks"

    @property
    def key_file(self) -> Path:
        return self.signing_key or self.data_dir.resolve() / "keys" / "signing.pem"

    @property
    def public_key_file(self) -> Path:
        return self.public_key or self.key_file.with_suffix(".pub")

    @property
    def log_folder(self) -> Path:
        return self.ledger_keys or self.key_file.parent / "ledger"

    @property
    def log_keys_file(self) -> Path:
        """Where the signer leaves the log's verifier keys: beside the other public key, for it is shared with the same."""
        return self.public_key_file.with_name("ledger.vkeys")

    @property
    def socket_path(self) -> str:
        """Where the signer listens. A data directory too deep for a socket gets a short, stable name under the temp folder."""
        wanted = self.signer_socket or str(self.data_dir.resolve() / "signer.sock")
        if len(wanted.encode()) <= LONGEST_SOCKET_PATH:
            return wanted
        short = hashlib.sha256(wanted.encode()).hexdigest()[:16]
        return str(Path(tempfile.gettempdir()) / f"expunge-{short}.sock")


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once: from the environment, and from files in the folder that EXPUNGE_SECRETS_DIR names."""
    return Settings(_secrets_dir=os.environ.get(SECRETS_DIR) or None)


OTHERS = {
    SECRETS_DIR: "folder of files whose contents are settings that the environment does not set; a file is called like its "
    "variable, in lower case: `expunge_database_url`",
    "EXPUNGE_API_KEY": "the API key that the client commands send; or `--key-file`, or `EXPUNGE_API_KEY_FILE`",
    "EXPUNGE_URL": "where the client commands find the service; default `http://127.0.0.1:8000`",
    "EXPUNGE_SUPERVISOR_PID": "set by `expunge up` for its children: the process that they must not outlive",
    "EXPUNGE_FAILPOINTS": "failures on demand, where `EXPUNGE_ALLOW_FAILPOINTS` is on: `docs/reference/storage.md`",
    "EXPUNGE_JOB": "set by a worker for its engine: the request that a process works for",
    "EXPUNGE_FENCE": "set by a worker for its engine: the claim that a process works under",
}
"""Environment variables of ours that are no settings."""


def reference() -> str:
    """The configuration reference, as `docs/reference/configuration.md` holds it."""
    rows = [
        f"| `EXPUNGE_{name.upper()}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    others = [f"| `{name}` | {text} |" for name, text in OTHERS.items()]
    return "\n".join(
        [
            "# Configuration",
            "",
            "<!-- printed by `python -m service.config`; do not edit -->",
            "",
            "Every setting of the API, the worker and the signer is an environment variable; all processes of one installation",
            "want the same ones. A value that is not valid stops a process at its start, in one sentence.",
            "",
            "| setting | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
            "Not settings, but of the same family:",
            "",
            "| variable | meaning |",
            "|---|---|",
            *others,
            "",
        ]
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(value, tuple | dict | bool):
        value = json.dumps(value)  # as it is to be written
    return "unset" if value in (None, "") else f"`{value}`"


if __name__ == "__main__":
    print(reference(), end="")
