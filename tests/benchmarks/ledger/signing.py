"""Seconds to sign a publication of 200 MB out of a store, and to verify the folder that is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from service.certificates import dsse, publication
from service.certificates.publication import Publication
from service.certificates.signing import KeySigner, Signed
from service.storage import Store
from service.verifier.certificate import verify_directory
from tests.service.certificates.doubles import a_statement


def measure(folder: Path, megabytes: int, rounds: int) -> tuple[float, float]:
    """Signing and verifying, medians. The files are in the page cache both times: a disk's speed is not measured."""
    key = ec.generate_private_key(ec.SECP256R1())
    files = {"model.safetensors": os.urandom(megabytes * 1_000_000), "config.json": b"{}", "README.md": b"a model"}
    store, home = Store((folder / "store").as_uri()), folder / "checkpoint"
    (home / publication.FOLDER).mkdir(parents=True)
    for name, data in files.items():
        (home / name).write_bytes(data)
        store.put(home / name)
    wanted = publication.assemble(a_statement(files), kind="generator")
    del files
    signer = KeySigner(dsse.key_of(key), store)
    (folder / "signing.pub").write_bytes(dsse.pem(key.public_key()))
    signing, verifying = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        signed = signer.sign(wanted)
        signing.append(time.perf_counter() - began)
        _lay_out(home, wanted, signed)
        began = time.perf_counter()
        report = verify_directory(home, folder / "signing.pub")
        verifying.append(time.perf_counter() - began)
        if not report.valid:
            raise RuntimeError(f"the folder that was signed is refused: {report.reason}")
    shutil.rmtree(folder / "store")
    return statistics.median(signing), statistics.median(verifying)


def _lay_out(home: Path, wanted: Publication, signed: Signed) -> None:
    """As a download has it."""
    (home / publication.CERTIFICATE).write_text(json.dumps(signed.certificate))
    for name, data in signed.evidence(wanted).items():
        (home / name).write_bytes(data)
