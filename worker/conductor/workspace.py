"""Job directories: `jobs/<request>/<fence>/`, made for one attempt, checked on the way in, gone when the attempt ends.

Only `steps/` may outlive an attempt, and only while the request is not over. Each fence has a directory of its own, so a
stale rank can never write into its successor's.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from service import failpoints, sources
from service.config import Settings
from service.errors import BadLocation
from service.files import open_file
from service.requests.leases import Lease, LeaseLost
from service.requests.lifecycle import KEEPS_PLACE, TERMINAL
from service.sources import SourceRefused, Sources
from service.storage import Missing, Store
from worker.conductor import caches
from worker.conductor.outcomes import Failed, problem
from worker.conductor.planning import Plan, Source
from worker.contract import FileEntry, JobDirectory

log = logging.getLogger("expunge.workspace")

CHUNK = 1 << 20
Check = Callable[[], None]


def open_job(settings: Settings, lease: Lease) -> JobDirectory:
    """A fresh directory for this attempt, with the newest step checkpoints that earlier ones left on this host.

    Call it when no process of an earlier attempt is left. The engine decides whether the checkpoints fit. A worker that stood
    still since its claim may be the earlier one by now: a later attempt's directory is never touched.

    Raises:
        LeaseLost: a later attempt has a directory here.
    """
    family = settings.jobs_dir / lease.request_id
    family.mkdir(parents=True, exist_ok=True, mode=0o700)
    others = sorted(family.iterdir(), key=_fence_of, reverse=True)
    if others and _fence_of(others[0]) > lease.fence:
        raise LeaseLost(f"request {lease.request_id} is worked on under fence {_fence_of(others[0])}, after {lease.fence}")
    root = family / str(lease.fence)
    root.mkdir(mode=0o700)
    job = JobDirectory(root)
    for previous in others:
        steps = JobDirectory(previous).steps
        if not job.steps.exists() and steps.is_dir() and any(steps.iterdir()):
            steps.rename(job.steps)
            log.info("steps.adopted", extra={"request": lease.request_id, "from": previous.name, "to": lease.fence})
        _remove(previous)
    return job


def stage(job: JobDirectory, plan: Plan, store: Store, settings: Settings, check: Check) -> None:
    """Bring everything the engine needs, each file hashed while it is copied, and the spec last.

    Args:
        check: called between chunks; raises when the attempt must stop.

    Raises:
        Failed: `integrity`, a file is not what was registered; `source_refused`, it lies where this worker must not read.
    """
    allowed = sources.of(settings)
    bring(plan.base, job.base, store, allowed, check)
    if plan.original.digest == plan.base.digest:
        job.original.symlink_to(job.base.name, target_is_directory=True)
    else:
        bring(plan.original, job.original, store, allowed, check)
    bring(plan.dataset, job.data, store, allowed, check)
    if plan.proxy is not None:
        bring(plan.proxy, job.proxy, store, allowed, check)
    if plan.spec.metric_weights_digest is not None and settings.metric_weights is not None:
        # Linked: they may be gigabytes, and the engine holds them against the digest before it reads them.
        job.metric_weights.symlink_to(settings.metric_weights.resolve(), target_is_directory=True)
    caches.bring_all(job, settings)
    part = job.root / ".spec.json"
    part.write_text(plan.spec.model_dump_json(indent=1))
    part.replace(job.spec)


def bring(source: Source, folder: Path, store: Store, allowed: Sources, check: Check) -> None:
    """Copy registered files into a folder of the job. Raises: Failed (`integrity`, `source_refused`)."""
    folder.mkdir()
    for entry in source.files:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _opened(source, entry, store, allowed) as stream, target.open("xb") as copy:
                digest, size = _copy(stream, copy, entry.size, check)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, Missing) as error:
            raise _changed(source, folder, entry, "is no longer there") from error
        except SourceRefused as error:
            raise Failed(problem("source_refused", f"the files of {source.id}: {error.detail}")) from error
        except BadLocation as error:
            raise _changed(source, folder, entry, f"cannot be taken: {error.detail}") from error
        if size != entry.size:
            raise _changed(source, folder, entry, f"was {entry.size} bytes long and is not any more")
        if digest != entry.sha256:
            raise _changed(source, folder, entry, f"was registered as {entry.sha256}, and is {digest}")


def _opened(source: Source, entry: FileEntry, store: Store, allowed: Sources) -> IO[bytes]:
    return store.open(entry.sha256) if source.location is None else open_file(source.location, entry.path, allowed)


def _copy(stream: IO[bytes], copy: IO[bytes], expected: int, check: Check) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        check()
        digest.update(chunk)
        size += len(chunk)
        if size > expected:
            break  # it grew: no need to read on
        failpoints.hit("job.write")
        copy.write(chunk)
    return digest.hexdigest(), size


def _changed(source: Source, folder: Path, entry: FileEntry, how: str) -> Failed:
    return Failed(problem("integrity", f"a file of {source.id} changed since registration: {folder.name}/{entry.path} {how}"))


# ------------------------------------------------------------------------------------------------------------- the end


def close_job(job: JobDirectory, *, keep_steps: bool) -> None:
    """Delete an attempt's directory, or all of it but the step checkpoints."""
    if not keep_steps:
        _remove(job.root)
    elif job.root.is_dir():
        _strip(job)
    family = job.root.parent
    if family.is_dir() and not any(family.iterdir()):
        family.rmdir()


def drop_steps(job: JobDirectory) -> None:
    """Delete the step checkpoints of a recipe that is given up: the next one has no use for them."""
    if job.steps.is_dir():
        _remove(job.steps)


def close_request(settings: Settings, request_id: str) -> None:
    """Delete everything of a request that is over."""
    _remove(settings.jobs_dir / request_id)


def sweep(settings: Settings, standing: Callable[[list[str]], Mapping[str, tuple[str, int]]]) -> None:
    """Delete what dead workers of this host left: all of ended or unknown requests; all but the steps of waiting ones.

    A directory whose fence is above the row's belongs to a claim that came after the row was read, and is left alone.

    Args:
        standing: status and fence of the requests that exist among these ids.
    """
    if not settings.jobs_dir.is_dir():
        return
    families = {p.name: p for p in settings.jobs_dir.iterdir()}
    known = standing(sorted(families))
    for request_id, family in families.items():
        status, fence = known.get(request_id, (None, 0))
        if status is None or status in TERMINAL:
            log.info("jobs.swept", extra={"request": request_id, "status": status})
            _remove(family)
        elif status in KEEPS_PLACE:
            for left in family.iterdir():
                if _fence_of(left) <= fence:
                    _strip(JobDirectory(left))


def _strip(job: JobDirectory) -> None:
    """Delete all but a non-empty `steps/`."""
    for path in job.root.iterdir():
        if path != job.steps:
            _remove(path)
    if not (job.steps.is_dir() and any(job.steps.iterdir())):
        _remove(job.root)


def _fence_of(path: Path) -> int:
    return int(path.name) if path.name.isdigit() else -1


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
