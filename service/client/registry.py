"""What is registered before anything can be forgotten: datasets and models; and the policies that results are held to."""

from __future__ import annotations

from collections.abc import Iterator

from service.client.bodies import (
    DatasetCreate,
    DatasetRead,
    DispositionCreate,
    DispositionRead,
    ModelCreate,
    ModelRead,
    ModelSummary,
    PolicyList,
    PolicyRead,
)
from service.client.transport import Transport, address


class Datasets:
    """Images and labels that models were trained on."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, wanted: DatasetCreate) -> DatasetRead:
        """Register a dataset; its files are hashed now. The same again is answered with what is there."""
        made: DatasetRead = self._transport.post("/datasets", wanted)
        return made

    def list(self) -> Iterator[DatasetRead]:
        """All, newest first."""
        return self._transport.pages("/datasets")

    def read(self, dataset_id: str) -> DatasetRead:
        found: DatasetRead = self._transport.get(address("datasets", dataset_id))
        return found


class Models:
    """Lineages: a model as it was registered, and what became of it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, wanted: ModelCreate) -> ModelRead:
        """Register a model; its files are hashed now, and checked again before every run."""
        made: ModelRead = self._transport.post("/models", wanted)
        return made

    def list(self) -> Iterator[ModelSummary]:
        """All, newest first."""
        return self._transport.pages("/models")

    def read(self, model_id: str) -> ModelRead:
        """With its versions."""
        found: ModelRead = self._transport.get(address("models", model_id))
        return found

    def dispose(self, model_id: str, number: int, wanted: DispositionCreate) -> DispositionRead:
        """Record what became of a version that was replaced: withdrawn, quarantined, destroyed."""
        made: DispositionRead = self._transport.post(address("models", model_id, "versions", number, "disposition"), wanted)
        return made


class Policies:
    """What results are held to."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> PolicyList:
        found: PolicyList = self._transport.get("/policies")
        return found

    def read(self, name: str) -> PolicyRead:
        found: PolicyRead = self._transport.get(address("policies", name))
        return found
