"""What a published checkpoint is verified with, put together by whoever wants to know: its spec, and where its inputs are.

The certificate beside the checkpoint, where there is one, says what was to be forgotten, of which original, with which data and
under which seed; what the caller brings is held against it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service import files
from service.errors import BadLocation
from service.sources import EVERYTHING
from service.verifier.certificate import EVIDENCE_FOLDER, MODEL_SIGNATURE
from worker.conductor import certified
from worker.conductor.certified import Certificate
from worker.conductor.facts import gather
from worker.conductor.wanted import Misused, Undecidable, Wanted, read_json
from worker.contract import DatasetSpec, FileEntry, Spec


@dataclass(frozen=True)
class Folder:
    """A model or a dataset as it lies there: its files, hashed, without the certificate. `whole`: are these all of them?"""

    path: Path
    entries: tuple[FileEntry, ...]
    whole: bool

    @property
    def digest(self) -> str:
        return files.tree_digest([files.FileEntry(e.path, e.size, e.sha256) for e in self.entries])


@dataclass(frozen=True)
class Dossier:
    """Everything that the gate needs."""

    spec: Spec
    candidate: Folder
    original: Folder
    parent: Folder
    data: Folder
    reference: Folder | None
    certificate: Certificate | None = None


def assemble(wanted: Wanted) -> Dossier:
    """Read, hash and compare.

    Raises:
        Misused: a name, a file or a policy that is none, or none that fits.
        Undecidable: the data, the original or another input is missing, or is not the one that the certificate names.
        Unsound: the checkpoint's files are not those that the certificate names, or the certificate is not what it says.
    """
    certificate = certified.read(wanted.directory, wanted.key)
    facts = gather(wanted, certificate)
    lacking = [f"the {what} (--{what})" for what in ("data", "original") if getattr(wanted, what) is None]
    if lacking:
        raise Undecidable(f"nothing can be verified without {' and '.join(lacking)}")
    assert wanted.data is not None
    assert wanted.original is not None
    candidate, original, data = folder(wanted.directory), folder(wanted.original), folder(wanted.data, suffix=".npz")
    _require_original(certificate, original)
    described = _described(wanted, certificate, data, facts["class_names"])
    parent = _parent(wanted, certificate, original)
    reference = folder(wanted.reference) if wanted.reference else None
    try:
        spec = Spec(
            **facts,
            dataset=described,
            base_digest=parent.digest,
            original_digest=original.digest,
            reference_digest=reference.digest if reference else None,
            ranks=wanted.ranks,
        )
    except ValidationError as error:
        said = "; ".join(e["msg"] for e in error.errors(include_url=False, include_input=False))
        raise Misused(f"this makes no request that could be verified: {said}") from error
    return Dossier(spec, candidate, original, parent, data, reference, certificate)


def folder(path: Path, *, suffix: str | None = None) -> Folder:
    """A folder's files, hashed; of a published checkpoint without its certificate.

    Args:
        suffix: the path may also be one file of this type.

    Raises:
        Misused: there is none, it cannot be read, or it holds links or special files.
    """
    try:
        location = files.read_location(os.path.realpath(path), EVERYTHING, single_suffix=suffix)
        kept = tuple(f for f in location.files if f.path.split("/")[0] not in (EVIDENCE_FOLDER, MODEL_SIGNATURE))
        hashed = files.hash_files(files.Location(location.url, kept))
    except BadLocation as error:
        raise Misused(f"{path}: {error.detail}") from error
    if not kept:
        raise Misused(f"{path}: expected the files of a model, found none")
    entries = tuple(FileEntry(path=e.path, size=e.size, sha256=e.sha256) for e in hashed)
    return Folder(Path(location.url), entries, whole=path.is_dir() and len(kept) == len(location.files))


# ------------------------------------------------------------------------------------------------- against the certificate


def _require_original(certificate: Certificate | None, original: Folder) -> None:
    if certificate is not None and certificate.predicate["original"]["digest"] != original.digest:
        raise Undecidable("the original (--original) is not the one that the certificate names")


def _parent(wanted: Wanted, certificate: Certificate | None, original: Folder) -> Folder:
    """The version that the checkpoint was made from; the original, where nothing says otherwise."""
    parent = folder(wanted.parent) if wanted.parent else original
    if certificate is not None and certificate.predicate["parent"]["digest"] != parent.digest:
        what = "is not the one that the certificate names" if wanted.parent else "is not the original, and is needed"
        raise Undecidable(f"the version that it was made from (--parent) {what}")
    return parent


def _described(wanted: Wanted, certificate: Certificate | None, data: Folder, class_names: Sequence[str]) -> DatasetSpec:
    """How the data are read, and which of them are held out: proved by the certificate, where there is one."""
    held_out = tuple(map(str, read_json(wanted.held_out, list))) if wanted.held_out else ()
    form = "npz" if any(e.path.lower().endswith(".npz") for e in data.entries) else "image_folder"
    if certificate is not None:
        entries = [files.FileEntry(e.path, e.size, e.sha256) for e in data.entries]
        came = files.dataset_digest(entries, format=form, class_names=class_names, held_out_ids=held_out)
        if came != certificate.predicate["dataset"]["digest"]:
            raise Undecidable("the data (--data), or which of them are held out (--held-out), are not those of the certificate")
    return DatasetSpec(format=form, digest=data.digest, held_out_ids=tuple(sorted(held_out)))
