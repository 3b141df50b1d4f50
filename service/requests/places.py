"""Where the files are that a wish is about, and what they say: read before the transaction that records it begins."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.datasets import items, shapes
from service.datasets import repository as datasets
from service.datasets.items import Items, Source
from service.db import reading
from service.errors import BadLocation, RetainUnfit
from service.models import repository as models
from service.requests import repository, retain
from service.requests.retain import StandIn
from service.requests.schemas import UnlearnRequestCreate


@dataclass(frozen=True)
class Places:
    """Where the files are that a wish is about, or is verified with: the model's dataset, and the one that stands in."""

    data: Source
    proxy: tuple[StandIn, Source] | None


class _Remembered:
    """Where the data of models are, for whom they were looked up: neither model nor dataset ever changes that, and neither
    leaves its project. Held by the project that acts, so that nobody is told anything of another's model.
    """

    def __init__(self, models: int, datasets: int) -> None:
        self._models, self._datasets = models, datasets
        self._dataset_of: OrderedDict[tuple[str | None, str], str] = OrderedDict()
        self._sources: OrderedDict[str, Source] = OrderedDict()
        self._lock = Lock()

    def get(self, model_id: str) -> Source | None:
        """None: look it up."""
        with self._lock:
            dataset_id = self._dataset_of.get((tenancy.project(), model_id))
            found = None if dataset_id is None else self._sources.get(dataset_id)
            if found is not None and dataset_id is not None:
                self._dataset_of.move_to_end((tenancy.project(), model_id))
                self._sources.move_to_end(dataset_id)
            return found

    def source(self, dataset_id: str) -> Source | None:
        """Of a dataset that the caller may see. None: look it up."""
        with self._lock:
            return self._sources.get(dataset_id)

    def put(self, model_id: str, dataset_id: str, source: Source) -> None:
        with self._lock:
            self._dataset_of[tenancy.project(), model_id] = dataset_id
            self._sources[dataset_id] = source
            if len(self._dataset_of) > self._models:
                self._dataset_of.popitem(last=False)
            if len(self._sources) > self._datasets:
                self._sources.popitem(last=False)


_remembered = _Remembered(models=4096, datasets=2 * items.REMEMBERED)


@dataclass(frozen=True)
class Known:
    """What these files say: the items of the model's dataset, where they could be read, and which dataset stands in."""

    items: Items | None = None
    stand_in: StandIn | None = None


def look(wanted: UnlearnRequestCreate, key: str | None) -> Known | None:
    """What is known of a wish before the transaction of `create` begins, which holds the model's row; None: a repetition.

    Where the data of a model are is asked once: after that no session is needed.

    Raises:
        ModelNotFound, DatasetNotFound; BadLocation, RetainUnfit: see `read_places`.
    """
    alone = wanted.retain is None or wanted.retain.proxy is None or wanted.retain.proxy.dataset_id is None
    data = _remembered.get(wanted.model_id) if alone else None
    if data is None:
        with reading() as session:
            where = places_for(session, wanted, key)
        return None if where is None else read_places(where, wanted)
    try:
        return read_places(Places(data, None), wanted)
    except (BadLocation, RetainUnfit):
        if key is not None:  # a repetition needs no data
            with reading() as session:
                if repository.idempotency_key(session, tenancy.own_tenant(), key):
                    return None
        raise


def places_for(session: OrmSession, wanted: UnlearnRequestCreate, key: str | None) -> Places | None:
    """Where to read what a wish is about; None for one that is a repetition.

    Read it before the transaction of `create` begins: it holds the model's row.

    Raises:
        ModelNotFound, DatasetNotFound.
    """
    if key is not None and repository.idempotency_key(session, tenancy.own_tenant(), key):
        return None
    dataset_id = models.get(session, wanted.model_id).dataset_id
    # whoever sees a model sees its dataset: both are of one project
    data = _remembered.source(dataset_id) or items.source(session, dataset_id)
    _remembered.put(wanted.model_id, dataset_id, data)
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
        known = items.recall(where.data)
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
