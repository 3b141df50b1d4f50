"""What a wish comes to: who and what it means, what stands in its way, and the row that it would be. Reads only.

The caller has locked the model's row, or only wants to know (`planning`).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session as OrmSession

from service import catalogue, ladders
from service.access.tables import Project
from service.audit.leaves import Actor
from service.config import Settings
from service.datasets.items import Items
from service.db import Clock
from service.errors import DuplicateRequest, LineageBusy, PolicyUnfit
from service.policies import service as policies
from service.requests import approvals, repository, retain
from service.requests.places import Known
from service.requests.repository import Waiting
from service.requests.retain import Choice
from service.requests.rungs import ladder_of
from service.requests.schemas import Retain, UnlearnRequestCreate
from service.requests.wishes import (
    Gone,
    Wish,
    require_forgettable,
    require_samples_forgettable,
    resolve_classes,
    resolve_samples,
)
from service.tables import Model, ModelVersion, UnlearnRequest, new_id
from service.telemetry import tracing

LARGEST_RANDOM_SEED = 2**31


@dataclass(frozen=True)
class Earlier:
    """A request that ended without a result, whose wish a new one takes up."""

    request: UnlearnRequest
    keep_recipe: bool
    """The new one has its method and parameters, every value of them."""


@dataclass(frozen=True)
class Standing:
    """What holds at the moment that a new request is judged."""

    forgotten: Gone
    """By the model's current version."""
    approvals: int | None
    """That the model's project asks for on its own."""
    at: datetime
    """By the database's clock."""


@dataclass(frozen=True)
class Judged:
    """The request as it would be made now, in no session yet; or the pending one that answers it."""

    request: UnlearnRequest
    waiting: Sequence[Waiting]
    """Requests of the model that have not ended, oldest first."""
    standing: Standing | None = None
    """Of a new one."""

    @property
    def is_new(self) -> bool:
        return self.standing is not None


_STANDING = (
    select(ModelVersion.forgotten_classes, ModelVersion.forgotten_samples, Project.approvals, Clock())
    .outerjoin(Project, Project.id == bindparam("project"))
    .where(ModelVersion.model_id == bindparam("model"), ModelVersion.number == bindparam("number"))
)


def _standing(session: OrmSession, model: Model) -> Standing:
    """Read after the model's row was locked, in a statement of its own: one that waited for the lock would join the version
    that was current before."""
    of_model = {"model": model.id, "number": model.current_version, "project": model.project_id}
    classes, samples, needed, at = session.execute(_STANDING, of_model).one()
    return Standing(Gone(frozenset(classes), frozenset(samples)), needed, at)


def judge(
    session: OrmSession,
    settings: Settings,
    wanted: UnlearnRequestCreate,
    model: Model,
    known: Known,
    actor: Actor,
    earlier: Earlier | None = None,
) -> Judged:
    """What the wish comes to.

    Raises:
        what `service.create` raises but for keys, dates and quotas.
    """
    wish = _wish(wanted, model, known.items)
    choice = _choice(wanted.retain, model)
    waiting = repository.pending(session, model.id)
    existing = _judge_conflicts(session, wanted, wish, choice, waiting)
    if existing is not None:
        return Judged(existing, waiting)
    standing = _standing(session, model)
    row = _row(settings, wanted, model, wish, choice, waiting, standing, known, actor, earlier)
    return Judged(row, waiting, standing)


def _wish(wanted: UnlearnRequestCreate, model: Model, known: Items | None) -> Wish:
    if wanted.forget.classes is not None:
        return Wish(classes=frozenset(resolve_classes(wanted.forget.classes, model.class_names)))
    assert wanted.forget.samples is not None, "the schema lets one of the two be missing"
    assert known is not None, "the caller reads the items first, unless the request is a repetition"
    return Wish(samples=resolve_samples(wanted.forget.samples, known.class_of, known.held_out))


def _choice(wanted: Retain | None, model: Model) -> Choice | None:
    """The retain data that are meant. Raises: RetainUnsupported, UnknownClass."""
    if wanted is None:
        return None
    catalogue.require_choice_of_retain_data(model.family)
    proxy = wanted.proxy
    return Choice(
        real=wanted.real_share,
        classes=tuple(resolve_classes(wanted.classes or (), model.class_names, retain.CLASSES_POINTER)),
        proxy_classes=tuple(
            resolve_classes((proxy.classes if proxy else None) or (), model.class_names, retain.PROXY_CLASSES_POINTER)
        ),
        proxy_dataset_id=proxy.dataset_id if proxy else None,
    )


def _require_forgettable(model: Model, wish: Wish, forgotten: Gone, waiting: list[Waiting], known: Items | None) -> None:
    if wish.samples and known is not None:
        pending = [other.gone for other in waiting]
        require_samples_forgettable(
            wish, forgotten=forgotten, pending=pending, class_of=known.class_of, class_names=model.class_names
        )
        return
    held = {k for other in waiting for k in other.gone.classes}
    require_forgettable(wish.classes, forgotten=forgotten.classes, pending=held, class_names=model.class_names)


def _policy(
    settings: Settings, model: Model, gone: Gone, choice: Choice | None, known: Items | None, name: str | None
) -> dict[str, Any]:
    """The policy for all that will have been forgotten when the request is done: what came before must not come back.

    Raises:
        SamplesUnverifiable, UnknownPolicy, PolicyUnfit.
    """
    units: dict[catalogue.Unit, bool] = {"class": bool(gone.classes), "sample": bool(gone.samples)}
    policy = policies.current_policy(settings, model.family, [unit for unit, any_gone in units.items() if any_gone], name)
    if known is not None:
        of_samples = {known.class_of[name] for name in gone.samples if name in known.class_of}
        needed = policies.classes_held_out(
            policy, gone.classes, of_samples, len(model.class_names), set_aside=choice.proxy_classes if choice else ()
        )
        least, there_are = policies.least_held_out(policy), known.held_out_counts
        few = [model.class_names[k] for k in sorted(needed) if there_are.get(k, 0) < least]
        if few:
            names = ", ".join(few[:20]) + (", …" if len(few) > 20 else "")
            what = "none" if least == 1 else f"fewer than {least}"
            raise PolicyUnfit(f"the policy {policy['name']!r} looks at held-out images, and the dataset has {what} of: {names}")
    return policy


def _judge_conflicts(
    session: OrmSession, wanted: UnlearnRequestCreate, wish: Wish, choice: Choice | None, waiting: list[Waiting]
) -> UnlearnRequest | None:
    """The pending request that answers this one, if the caller is content with it. One that chose other retain data is not
    what a caller who chooses some asked for: it may look at images that he forbids."""
    if wanted.on_conflict == "use_existing":
        fitting = (w for w in waiting if w.gone.covers(wish) and w.status != "cancelling")
        covering = next((w for w in fitting if choice is None or w.retain == choice), None)
        if covering is not None:
            return repository.get(session, covering.id)
    for other in waiting:
        if other.gone.overlaps(wish):
            what = "a sample" if wish.samples else "a class"
            raise DuplicateRequest(f"{what} is asked for by a pending request", pointer=wish.pointer, request_id=other.id)
    if waiting and wanted.on_conflict == "reject":
        raise LineageBusy(request_id=waiting[0].id)
    return None


def _row(
    settings: Settings,
    wanted: UnlearnRequestCreate,
    model: Model,
    wish: Wish,
    choice: Choice | None,
    waiting: list[Waiting],
    standing: Standing,
    known: Known,
    actor: Actor,
    earlier: Earlier | None,
) -> UnlearnRequest:
    forgotten = standing.forgotten
    _require_forgettable(model, wish, forgotten, waiting, known.items)
    gone = Gone.together([forgotten, *(w.gone for w in waiting), wish.gone])
    if choice is not None:
        retain.require_usable(choice, gone.classes, model.class_names, known.stand_in)
    unit: catalogue.Unit = "sample" if wish.samples else "class"
    if earlier is not None and earlier.keep_recipe:
        method, params = earlier.request.method, earlier.request.params
    else:
        method, params = ladders.choose(model.family, wanted.method, wanted.params, unit=unit)
    policy = _policy(settings, model, gone, choice, known.items, wanted.policy)
    at = standing.at
    # requests of one model run in this order, and SQLite's clock ticks in milliseconds
    created_at = max([at, *(r.created_at + timedelta(microseconds=1) for r in waiting)])
    needed = approvals.required(settings, standing.approvals)
    return UnlearnRequest(
        id=new_id("ureq"),
        model_id=model.id,
        forget_classes=sorted(wish.classes),
        forget_samples=sorted(wish.samples),
        retain=choice.row() if choice else None,
        method=method,
        params=params,
        seed=secrets.randbelow(LARGEST_RANDOM_SEED) if wanted.seed is None else wanted.seed,
        ranks=wanted.resources.ranks,
        gpu_class=wanted.resources.gpu_class,
        priority=wanted.priority,
        supersedes=earlier.request.id if earlier else None,
        on_conflict=wanted.on_conflict,
        policy=ladders.charged(policy, len(ladder_of(method, params, policy))),
        reason=wanted.reason,
        external_id=wanted.external_id,
        client_metadata=wanted.metadata,
        status="pending_approval" if needed else "queued",
        approvals_required=needed,
        version=1,
        fence=0,
        attempts_charged=0,
        not_before=at,
        traceparent=tracing.traceparent(),
        created_at=created_at,
        created_by=str(actor),
        project_id=model.project_id,
    )
