"""A typed client of the HTTP API: a method for every operation, and the bodies as types that a type checker knows.

    with Client("https://expunge.example", key=key) as client:
        request = client.requests.create({"model_id": model, "forget": {"classes": ["3"]}}, idempotency_key=key_of_the_wish)
        final = client.requests.watch(request["id"])
        client.checkpoints.download(final["checkpoint_id"], Path("checkpoint"))

Bodies are dictionaries as the API documents them (`service.client.bodies`); times are ISO 8601 text in UTC. All methods raise
`ApiError` where the service refuses, with its `code`, and `Unreachable` where nobody answers; lists are fetched page by page as
they are read.
"""

from __future__ import annotations

from service.client.administration import ApiKeys, Operations, Principals, Projects, Webhooks
from service.client.checkpoints import Checkpoints, Download
from service.client.ledger import Ledger
from service.client.registry import Datasets, Models, Policies
from service.client.requests import Requests
from service.client.transport import ApiError, Json, Transport, Unreachable

__all__ = ["ApiError", "Client", "Download", "Json", "Transport", "Unreachable"]


class Client(Transport):
    """One service, its operations grouped by what they are about. Its own methods take addresses and bodies as they are.

    Args:
        url: of the service.
        key: API key or token.
        timeout: seconds without a byte, until a call is given up.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 30.0) -> None:
        super().__init__(url, key=key, timeout=timeout)
        self.datasets = Datasets(self)
        self.models = Models(self)
        self.policies = Policies(self)
        self.requests = Requests(self)
        self.checkpoints = Checkpoints(self)
        self.ledger = Ledger(self)
        self.projects = Projects(self)
        self.principals = Principals(self)
        self.keys = ApiKeys(self)
        self.webhooks = Webhooks(self)
        self.operations = Operations(self)
