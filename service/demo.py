"""`expunge demo`: the whole journey on a real model, on one machine, in about a minute.

It is a client like any other: it starts the embedded service as a child, talks to it over HTTP, downloads the certified
checkpoint and verifies it offline with the signer's public key.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from service.certificates.dsse import payload_of
from service.certificates.publication import CERTIFICATE
from service.client import ApiError, Client, Unreachable
from service.client.bodies import ModelRead, UnlearnRequestCreate, UnlearnRequestRead
from service.processes import PARENT
from service.show import before_after_table, follow, scores
from service.verifier.certificate import verify_directory
from service.verifier.reading import Report

START_SECONDS = 60.0
PICTURE = "before_after.png"
KEYS = (
    "request_status",
    "forget_class",
    "unlearning_accuracy",
    "unlearning_accuracy_lower95",
    "retain_accuracy_before",
    "retain_accuracy_after",
    "original_fails_gate",
    "certificate_valid",
    "checkpoint_digest",
    "seconds_total",
    "seconds_unlearn",
    "seconds_verify",
)
"""The result's keys, all of them always there; null where the run did not come so far."""

Json = dict[str, Any]


class DemoFailed(Exception):
    """The journey ended early; the message says where."""


@dataclass(frozen=True)
class Demo:
    """What to forget, and where to put what comes of it."""

    forget_class: str
    out: Path
    seed: int
    ranks: int | None
    console: Console
    keep: bool = False

    def run(self) -> tuple[Json, list[str]]:
        """The result object, and what went wrong (nothing, when all is well)."""
        started = time.monotonic()
        result: Json = dict.fromkeys(KEYS)
        result["forget_class"] = self.forget_class
        faults: list[str] = []
        try:
            self._journey(result)
        except (DemoFailed, ApiError, Unreachable, OSError) as error:
            faults.append(str(error))
        result["seconds_total"] = round(time.monotonic() - started, 2)
        return result, faults + shortcomings(result)

    def _journey(self, result: Json) -> None:
        self._clear()
        home = Path(tempfile.mkdtemp(prefix="expunge-demo-"))
        try:
            with service(home, self.ranks) as (client, log_file):
                try:
                    self._story(client, home, result)
                except DemoFailed as error:
                    raise DemoFailed(f"{error}\n{tail(log_file)}") from error
        finally:
            if self.keep:
                self.console.print(f"kept the service's data in {home}")
            else:
                shutil.rmtree(home, ignore_errors=True)

    def _clear(self) -> None:
        """Take away what an earlier run left, and only that: the folder may be somebody's."""
        self.out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.out / "checkpoint", ignore_errors=True)
        for name in (PICTURE, "signing.pub", "ledger.policy", "certificate.sig", "certificate.pae"):
            (self.out / name).unlink(missing_ok=True)

    def _story(self, client: Client, home: Path, result: Json) -> None:
        say = self.console.print
        model = register_example(client, export_example(home / "example"))
        say(f"registered model  [bold]{model['id']}[/] (a class-conditional DDPM trained on real scans)")
        body: UnlearnRequestCreate = {"model_id": model["id"], "forget": {"classes": [self.forget_class]}, "seed": self.seed}
        if self.ranks:
            body["resources"] = {"ranks": self.ranks}
        request = client.requests.create(body, idempotency_key=str(uuid.uuid4()))
        say(f"accepted request  [bold]{request['id']}[/]: forget {self.forget_class!r}")
        final = follow(client, request["id"], self.console)
        result["request_status"] = final["status"]
        if final["status"] != "succeeded":
            self._explain(client, final, result)
            raise DemoFailed(f"the request ended as {final['status']}: {(final.get('error') or {}).get('message', '')}")
        self._collect(client, home, final, result)

    def _explain(self, client: Client, request: UnlearnRequestRead, result: Json) -> None:
        """A request that failed its gate still has a report: show it."""
        try:
            report = client.requests.report(request["id"])
        except ApiError as error:
            if error.status != 404:
                raise
            return
        result.update(scores(report))
        self.console.print(before_after_table(report))

    def _collect(self, client: Client, home: Path, request: UnlearnRequestRead, result: Json) -> None:
        report = client.requests.report(request["id"])
        checkpoint = self.out / "checkpoint"
        if request["checkpoint_id"] is None:
            raise DemoFailed("the request succeeded and names no checkpoint")
        if missing := client.checkpoints.download(request["checkpoint_id"], checkpoint).missing:
            raise DemoFailed(f"the ledger was not signed in time: {', '.join(missing)} cannot be had yet")
        client.requests.download_picture(request["id"], PICTURE, self.out / PICTURE)
        key = self.out / "signing.pub"
        shutil.copyfile(home / "data" / "keys" / "signing.pub", key)
        policy = self.out / "ledger.policy"
        policy.write_text(client.ledger.policy())
        outcome = verify_directory(checkpoint, key, policy)
        lay_bare(checkpoint, self.out)
        result.update(scores(report))
        result["certificate_valid"] = outcome.valid
        result["checkpoint_digest"] = outcome.facts.get("checkpoint_digest")
        result["seconds_unlearn"] = run_seconds(checkpoint)
        self.console.print(before_after_table(report))
        self._farewell(request, checkpoint, outcome)

    def _farewell(self, request: UnlearnRequestRead, checkpoint: Path, outcome: Report) -> None:
        say = self.console.print
        say(f"certificate       {'[green]valid[/]' if outcome.valid else '[red]NOT VALID[/]'}: {outcome.reason}")
        say(f"checkpoint        {checkpoint}   ({request['checkpoint_id']})", soft_wrap=True)
        say(f"picture           {self.out / PICTURE}", soft_wrap=True)
        say("check it yourself, with our verifier, with the stock tool for model signatures, and with openssl:")
        for command in checks(self.out):
            say(f"  {command}", soft_wrap=True)


# ------------------------------------------------------------------------------------------------------------ the service


@contextmanager
def service(home: Path, ranks: int | None) -> Iterator[tuple[Client, Path]]:
    """The embedded service on a free port, stopped at the end."""
    port = free_port()
    log_file = home / "service.log"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("EXPUNGE_")},
        "EXPUNGE_DATA_DIR": str(home / "data"),
        "EXPUNGE_PORT": str(port),
        "EXPUNGE_RANKS": str(ranks or 0),
        PARENT: str(os.getpid()),
    }
    command = [sys.executable, "-m", "service.cli", "up", "--log-file", str(log_file)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            wait_until_ready(client, process, log_file)
            yield client, log_file
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr:
            process.stderr.close()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(client: Client, process: subprocess.Popen[bytes], log_file: Path) -> None:
    """Raises: DemoFailed when the service does not come up."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = process.stderr.read().decode(errors="replace") if process.stderr else ""
            raise DemoFailed(f"the service ended with status {process.returncode}\n{said}{tail(log_file)}")
        try:
            client.operations.readiness()
        except (Unreachable, ApiError):
            time.sleep(0.1)
        else:
            return
    raise DemoFailed(f"the service was not ready after {START_SECONDS:.0f} s\n{tail(log_file)}")


def tail(log_file: Path, lines: int = 20) -> str:
    """The end of the service's log."""
    if not log_file.exists():
        return ""
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-lines:])


def export_example(folder: Path) -> Json:
    """The example model and its data as files. A child process: scikit-learn does not belong into this one."""
    command = [sys.executable, "-m", "worker.examples.digits", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"the example could not be written:\n{done.stderr[-2000:]}")
    example: Json = json.loads(done.stdout.splitlines()[-1])
    return example


def register_example(client: Client, example: Json) -> ModelRead:
    """Register the dataset and the model that `export_example` wrote; returns the model. Raises: ApiError, Unreachable."""
    dataset = client.datasets.create(
        {
            "name": "handwritten digits",
            "format": "npz",
            "location": example["dataset"],
            "class_names": example["class_names"],
            "held_out_ids": example["held_out_ids"],
        },
    )
    return client.models.create(
        {
            "name": "digits-ddpm",
            "family": example["family"],
            "location": example["model"],
            "dataset_id": dataset["id"],
            "class_names": example["class_names"],
        },
    )


# ------------------------------------------------------------------------------------------------------------- the result


def checks(out: Path) -> list[str]:
    """Commands for somebody who does not take our word, to be run as they stand."""
    checkpoint, key = out / "checkpoint", out / "signing.pub"
    return [
        f"expunge verify certificate {checkpoint} --key {key} --policy {out / 'ledger.policy'}",
        f"model_signing verify key {checkpoint} --signature {checkpoint / 'model.sig'} --public_key {key}",
        f"openssl dgst -sha256 -verify {key} -signature {out / 'certificate.sig'} {out / 'certificate.pae'}",
    ]


def lay_bare(checkpoint: Path, out: Path) -> None:
    """The certificate's signature and the very bytes that it is over, for tools that know neither DSSE nor bundles."""
    bundle = json.loads((checkpoint / CERTIFICATE).read_text())
    payload, (signature,) = payload_of(bundle), bundle["dsseEnvelope"]["signatures"]
    kind = bundle["dsseEnvelope"]["payloadType"].encode()
    (out / "certificate.pae").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    (out / "certificate.sig").write_bytes(base64.b64decode(signature["sig"]))


def run_seconds(checkpoint: Path) -> float:
    """How long the unlearning took, as the certificate says."""
    run = json.loads(payload_of(json.loads((checkpoint / CERTIFICATE).read_text())))["predicate"]["run"]
    return round(float(run["secondsPrepare"]) + float(run["secondsUnlearn"]), 2)


def shortcomings(result: Mapping[str, Any]) -> list[str]:
    """What keeps the result from being a success: the exit status is made of this."""
    found = []
    if result["request_status"] != "succeeded":
        found.append("the request did not succeed")
    if result["original_fails_gate"] is not True:
        found.append("the original did not fail the gate")
    if result["certificate_valid"] is not True:
        found.append("the certificate is not valid")
    return found
