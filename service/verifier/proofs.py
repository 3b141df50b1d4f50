"""Single entries, proved to be in a signed ledger: a receipt, and the dossier of a request."""

import hashlib
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.verifier.entries import History, opened
from service.verifier.merkle import leaf_hash
from service.verifier.note import Checkpoint, Policy, carried, inclusion
from service.verifier.reading import (
    MAX_DOCUMENT_BYTES,
    Tampered,
    Undecided,
    about,
    envelope,
    read,
    reported,
    require_same,
    require_sums,
    unjson,
)


def trusted(path: Path) -> Policy:
    """The policy by which whoever verifies believes a log."""
    data = read(path, "policy")
    try:
        return Policy.parse(data.decode())
    except ValueError as error:
        raise Undecided(f"{path} is no policy: {error}") from error


def instant(seconds: int) -> str:
    """A witness's time; empty: no witness that the policy knows has seen the checkpoint."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}" if seconds else ""


def proved(proof: bytes, policy: Policy, leaf: bytes | None = None) -> tuple[int, dict[str, Any], Checkpoint]:
    """Where an entry stands, what it says, in which signed tree. The proof brings the entry along, unless it is given."""
    text = proof.decode()
    leaf = carried(text) if leaf is None else leaf
    if leaf is None:
        raise Undecided("the proof brings no entry along: say which file it is in")
    index, checkpoint = inclusion(text, leaf_hash(leaf), policy)
    return index, opened(leaf), checkpoint


@reported
def verify_receipt(proof_file: Path, policy_file: Path, leaf_file: Path | None = None) -> tuple[str, dict[str, Any]]:
    """One entry's tlog-proof."""
    policy, proof, leaf = trusted(policy_file), read(proof_file, "proof"), read(leaf_file, "entry") if leaf_file else None
    with about(proof_file.name):
        seq, body, tree = proved(proof, policy, leaf)
        said = {"seq": seq, "action": body["type"], "at": body["at"], "request": (body["request"] or {}).get("id")}
    facts = {"origin": tree.origin, "entries": tree.size, "as_of": instant(tree.seen_at) or body["at"]}
    return "the entry is in the signed ledger", said | facts


@reported
def verify_dossier(archive: Path, policy_file: Path) -> tuple[str, dict[str, Any]]:
    """All that was logged of one request, and nothing in between left out; what came after its last entry cannot be seen."""
    policy, files = trusted(policy_file), _unzipped(archive)
    for name in ("SHA256SUMS", "manifest.json", "events.ndjson"):
        if name not in files:
            raise Undecided(f"there is no {name}")
    sums, history, issued, tree = files.pop("SHA256SUMS"), History(), dict[str, str](), None
    require_sums(sums, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    with about("manifest.json"):
        manifest = unjson(files.pop("manifest.json"))
        request, size, origin = manifest["request_id"], manifest["size"], manifest["origin"]
    last, closed = -1, False
    for line in files.pop("events.ndjson").splitlines():
        with about("events.ndjson"):
            said = unjson(line)
            seq, leaf, by = said["seq"], said.get("leaf"), said.get("redacted_by")
            text = None if leaf is None else leaf.encode()
            digest = bytes.fromhex(said["leaf_hash"]) if text is None else leaf_hash(text)
        with about(f"entry {seq}"):
            told = {} if text else {"request_ordinal": history.chains.get(request, (0,))[0], "action": ""}
            body = history.take(seq, text, digest, by, {"request_id": request, **told})
            index, tree = inclusion(files.pop(f"proofs/{seq}.tlog-proof").decode(), digest, policy)
            if index != seq or seq <= last or (tree.origin, tree.size) != (origin, size):
                raise Tampered("its proof is of another place, or of another tree than the manifest's")
            last, closed = seq, closed or body.get("type") == "unlearning.request.closed"
            if body and body["type"] == "certificate.issued":
                issued[f"certificates/{body['public']['checkpointId']}.sigstore.json"] = body["public"]["payloadSha256"]
    if tree is None:
        raise Tampered("events.ndjson holds no entry")
    _require_redactions(history, files, policy, tree)
    files.pop("policy.txt", None)
    payloads = {}
    for name, data in files.items():
        with about(name):
            payloads[name] = hashlib.sha256(envelope(data)[0]).hexdigest()
    require_same(issued, payloads, "the entries")
    events = history.chains[request][0]
    facts = {
        "request": request,
        "events": events,
        "closed": closed,
        "certificates": sorted(issued),
    }
    facts |= {"redacted": sorted(seq for seq, _ in history.redacted), "origin": origin, "entries": size}
    return "every entry of the request is in the signed ledger, in one chain", facts | {
        "as_of": instant(tree.seen_at) or history.at
    }


def _require_redactions(history: History, files: dict[str, bytes], policy: Policy, tree: Checkpoint) -> None:
    """An entry of the same tree says of each missing text that it was taken away; else whoever handed this on may have."""
    for seq, by in sorted(history.redacted):
        name = f"proofs/{by}.tlog-proof"
        with about(name):
            proof = files.pop(name, b"")
            if not proof or carried(proof.decode()) is None:
                raise Undecided(f"entry {seq} has no text, and {name} with the entry that took it away is missing")
            index, body, other = proved(proof, policy)
            if index != by or other != tree:
                raise Tampered("it is of another place, or of another tree than the manifest's")
            if body["type"] != "entry.redacted" or body["public"]["seq"] != seq:
                raise Tampered(f"entry {seq} has no text, and entry {by} does not say that it was redacted")


def _unzipped(archive: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(archive) as opened_:
            names = [info.filename for info in opened_.infolist()]
            if len(set(names)) != len(names) or sum(info.file_size for info in opened_.infolist()) > 4 * MAX_DOCUMENT_BYTES:
                raise Tampered("a file is in it twice, or it is too long to be one of ours")
            return {name: opened_.read(name) for name in names}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise Tampered(f"{archive.name} is no zip file, or is damaged") from error
