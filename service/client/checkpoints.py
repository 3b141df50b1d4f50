"""Certified checkpoints: what they are, their files, their certificates, and taking them back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from service.client.bodies import CheckpointRead, Opening, RevocationCreate, RevocationRead
from service.client.transport import ApiError, Json, Transport, address
from service.fetching import DownloadRefused, sha256_of_file

LEDGER_PATIENCE_SECONDS = 30.0
"""So long a download waits for the ledger to be signed: seconds after a publication, as a rule."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Download:
    """What was fetched of a checkpoint."""

    manifest: CheckpointRead
    missing: list[str]
    """Receipts that the ledger's log has not been signed for yet, by their path: all that may be missing."""


class Checkpoints:
    """What was published."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def read(self, checkpoint_id: str) -> CheckpointRead:
        """Its manifest: every file with its size and digest."""
        found: CheckpointRead = self._transport.get(address("checkpoints", checkpoint_id))
        return found

    def certificate(self, checkpoint_id: str) -> Json:
        """The certificate, as a Sigstore bundle."""
        found: Json = self._transport.get(address("checkpoints", checkpoint_id, "certificate"))
        return found

    def receipt(self, checkpoint_id: str) -> str:
        """Proof that its certificate is in the ledger (C2SP tlog-proof). Raises: ApiError: `not_yet_signed`."""
        return self._transport.text(address("checkpoints", checkpoint_id, "receipt"))

    def membership(self, checkpoint_id: str, item: str) -> Opening:
        """Proof that one item is in the forget set, which reveals no other."""
        found: Opening = self._transport.get(address("checkpoints", checkpoint_id, "membership"), item=item)
        return found

    def revoke(self, checkpoint_id: str, wanted: RevocationCreate) -> RevocationRead:
        """Ask that it be taken back; it is, once somebody else approves."""
        made: RevocationRead = self._transport.post(address("checkpoints", checkpoint_id, "revoke"), wanted)
        return made

    def approve_revocation(self, checkpoint_id: str) -> RevocationRead:
        """Take it back, as somebody else has asked. Its files are gone for downloads from now on."""
        made: RevocationRead = self._transport.post(address("checkpoints", checkpoint_id, "revoke", "approve"))
        return made

    def revocations(self) -> Json:
        """The signed list of what was taken back, as a Sigstore bundle."""
        found: Json = self._transport.get("/revocations")
        return found

    def signing_key(self) -> str:
        """The public key that certificates are verified with, PEM."""
        return self._transport.text("/signing-key")

    def download_file(self, checkpoint_id: str, path: str, target: Path, *, sha256: str | None = None) -> None:
        """One file of it. Raises: DownloadRefused: the bytes do not hash to `sha256`."""
        self._transport.download(address("checkpoints", checkpoint_id, "files") + "/" + quote(path), target, sha256=sha256)

    def download(self, checkpoint_id: str, directory: Path, *, patience_seconds: float = LEDGER_PATIENCE_SECONDS) -> Download:
        """Fetch every file of it, its certificate and what lies beside it into `directory`.

        Files that lie there already under their digest are left alone, so a call that is repeated only fetches what is missing.

        Args:
            patience_seconds: how long to wait for receipts, once everything else is there.

        Raises:
            ApiError, Unreachable.
            DownloadRefused: a file is not the one that the manifest names.
        """
        manifest = self.read(checkpoint_id)
        for entry in [*manifest["files"], *manifest["evidence"]]:
            target = _inside(directory, entry["path"])
            if not target.is_file() or sha256_of_file(target) != entry["sha256"]:
                self.download_file(checkpoint_id, entry["path"], target, sha256=entry["sha256"])
        deadline = time.monotonic() + patience_seconds
        missing: list[str] = manifest["later"]
        while missing := [path for path in missing if not self._signed(checkpoint_id, path, directory)]:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        return Download(manifest, missing)

    def _signed(self, checkpoint_id: str, path: str, directory: Path) -> bool:
        """Fetch what the service can only give once the ledger has been signed; False: it has not been."""
        try:
            self.download_file(checkpoint_id, path, _inside(directory, path))
        except ApiError as error:
            if error.code != "not_yet_signed":
                raise
            return False
        return True


def _inside(directory: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise DownloadRefused("the manifest names a file outside the checkpoint")
    return directory / relative
