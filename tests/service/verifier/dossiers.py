"""Dossiers of requests, as the service hands them out."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tests.service.verifier.ledgers import ORIGIN, Ledger, Row
from tests.service.verifier.published import bundle

PAYLOAD = b'{"a":"certificate"}'


def dossier(ledger: Ledger, request: str, path: Path, chosen: Callable[[list[Row]], list[Row]] = list) -> Path:
    """Of one request; `chosen` leaves events out or turns them around. Its certificates are those that the entries name."""
    rows = chosen([row for row in ledger.rows() if row["request_id"] == request])
    files: dict[str, bytes] = {"policy.txt": ledger.signers.policy().encode()}
    events = []
    for row in rows:
        text: dict[str, Any] = {"leaf": row["leaf"].decode()} if row["leaf"] else {
            "redacted_by": row["redacted_by"], "leaf_hash": row["leaf_hash"].hex()
        }  # fmt: skip
        events.append(json.dumps({"seq": row["seq"], **text}) + "\n")
        files[f"proofs/{row['seq']}.tlog-proof"] = ledger.proof(row["seq"], extra=row["leaf"] is not None).encode()
        if row["redacted_by"] is not None:
            files[f"proofs/{row['redacted_by']}.tlog-proof"] = ledger.proof(row["redacted_by"]).encode()
        if row["action"] == "certificate.issued" and row["leaf"]:
            sealed = bundle(PAYLOAD, ec.generate_private_key(ec.SECP256R1()))
            files[f"certificates/ckpt_{request}.sigstore.json"] = json.dumps(sealed).encode()
    files["events.ndjson"] = "".join(events).encode()
    manifest = {"request_id": request, "size": ledger.stored[-1].size, "origin": ORIGIN}
    files["manifest.json"] = json.dumps(manifest).encode()
    listed = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (*files.items(), ("SHA256SUMS", "".join(listed).encode())):
            archive.writestr(name, data)
    return path
