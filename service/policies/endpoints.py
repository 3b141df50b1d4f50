"""/policies"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.auth import allowed
from service.catalogue import Kind, Unit
from service.config import Settings
from service.errors import PolicyNotFound, UnknownPolicy, problems
from service.policies import service
from service.policies.service import Json

router = APIRouter(prefix="/policies", tags=["policies"])


class DefaultFor(BaseModel):
    """Requests that are held to it where they name none."""

    kind: Kind
    forgotten: list[Unit] = Field(description="what was ever forgotten on the lineage")


class PolicySummary(BaseModel):
    """A verification policy that a request may name, in short."""

    object: Literal["policy"] = "policy"
    name: str
    title: str
    kinds: list[Kind] = Field(description="of models that it is for")
    default_for: list[DefaultFor]


class Resolved(BaseModel):
    """What it asks of one kind of model."""

    sha256: str = Field(
        description="as certificates carry it; of a request for `auto` they carry that of this policy with `attempts` raised "
        "to the number of its recipes, where that is larger"
    )
    policy: dict[str, Any] = Field(description="checks with their thresholds, in full, and every default")


class PolicyRead(PolicySummary):
    """A verification policy with what it asks of each kind of model."""

    by_kind: dict[Kind, Resolved]


class PolicyList(BaseModel):
    """All policies that a request may name, by name."""

    object: Literal["list"] = "list"
    data: list[PolicySummary]
    has_more: bool = False


@router.get(
    "",
    dependencies=[allowed("catalogue:read")],
    response_model=PolicyList,
    summary="List the verification policies that a request may name",
)
def list_policies(request: Request) -> PolicyList:
    """Where the operator has set one, that one alone."""
    settings = request.app.state.settings
    return PolicyList(data=[_summary(settings, document) for document in map(service.read, service.known(settings).values())])


@router.get(
    "/{name}",
    dependencies=[allowed("catalogue:read")],
    response_model=PolicyRead,
    summary="Read a verification policy",
    responses=problems(PolicyNotFound),
)
def read_policy(name: str, request: Request) -> PolicyRead:
    """Its checks and thresholds, by kind of model, with their digests.

    A request for `auto` may have more results verified in turn than the policy says. It is then held to the same checks with
    `attempts` as many as it has recipes, each at a smaller share of the error budget, under that document's digest.
    """
    settings = request.app.state.settings
    try:
        document = service.named(settings, name)
    except UnknownPolicy as error:
        raise PolicyNotFound(error.detail) from error
    policies = {kind: service.resolved(document, kind) for kind in service.kinds_of(document)}
    by_kind = {kind: Resolved(sha256=service.digest(policy), policy=policy) for kind, policy in policies.items()}
    return PolicyRead(**_summary(settings, document).model_dump(), by_kind=by_kind)


def _summary(settings: Settings, document: Json) -> PolicySummary:
    alone = settings.policy_file is not None
    cases = [
        DefaultFor(kind=kind, forgotten=sorted(units))
        for (kind, units), name in service.DEFAULTS.items()
        if (alone and kind in service.kinds_of(document)) or (not alone and name == document["name"])
    ]
    return PolicySummary(
        name=document["name"],
        title=document.get("title", ""),
        kinds=list(service.kinds_of(document)),
        default_for=cases,
    )
