"""Where the files are that a wish is about, and what they say: read before the transaction that records it begins."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.datasets import items, shapes
from service.datasets import repository as datasets
from service.datasets.items import Items, Source
from service.errors import BadLocation
from service.models import repository as models
from service.requests import repository, retain
from service.requests.retain import StandIn
from service.requests.schemas import UnlearnRequestCreate


@dataclass(frozen=True)
class Places:
    """Where the files are that a wish is about, or is verified with: the model's dataset, and the one that stands in."""

    data: Source
    proxy: tuple[StandIn, Source] | None


@dataclass(frozen=True)
class Known:
    """What these files say: the items of the model's dataset, where they could be read, and which dataset stands in."""

    items: Items | None = None
    stand_in: StandIn | None = None


def places_for(session: OrmSession, wanted: UnlearnRequestCreate, key: str | None) -> Places | None:
    """Where to read what a wish is about; None for one that is a repetition.

    Read it before the transaction of `create` begins: it holds the model's row.

    Raises:
        ModelNotFound, DatasetNotFound.
    """
    if key is not None and repository.idempotency_key(session, tenancy.own_tenant(), key):
        return None
    data = items.source(session, models.get(session, wanted.model_id).dataset_id)
    proxy_id = wanted.retain.proxy.dataset_id if wanted.retain and wanted.retain.proxy else None
    if proxy_id is None:
        return Places(data, None)
    row = datasets.get(session, proxy_id)
    source = items.source(session, proxy_id)
    return Places(data, (StandIn(row.id, row.digest, source.class_names, items.classes_within(data, source)), source))


def read_places(where: Places, wanted: UnlearnRequestCreate) -> Known:
    """What the files say. Items that cannot be read just now are None where the wish can be understood without them.

    Raises:
        BadLocation: what is needed cannot be read.
        RetainUnfit: the proxy dataset's images are of another size.
    """
    known: Items | None = None
    try:
        known = items.read(where.data)
    except BadLocation:
        if wanted.forget.samples is not None:
            raise
        # else the worker reads them again, and hashes them: it will say what is wrong
    if where.proxy is None:
        return Known(known)
    stand_in, source = where.proxy
    try:
        proxy_shape = shapes.image_shape(source)
    except BadLocation as error:
        raise BadLocation(error.detail, pointer=retain.PROXY_DATASET_POINTER) from error
    retain.require_same_shape(proxy_shape, None if known is None else shapes.image_shape(where.data))
    return Known(known, stand_in)
