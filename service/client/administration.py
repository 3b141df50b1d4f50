"""Who may do what, who is told, and how the service is: for admins and operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from service.client.bodies import (
    ApiKeyCreate,
    ApiKeyMade,
    ApiKeyRead,
    Catalogue,
    Health,
    PrincipalCreate,
    PrincipalRead,
    ProjectAmendment,
    ProjectCreate,
    ProjectRead,
    Queue,
    Readiness,
    WebhookDeliveryRead,
    WebhookEndpointChange,
    WebhookEndpointCreate,
    WebhookEndpointRead,
    WebhookEndpointSecret,
    WorkerList,
)
from service.client.transport import Transport, address

Delivered: TypeAlias = Literal["pending", "delivered", "failed"]


class Projects:
    """What is kept apart: nobody sees anything of another project."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, wanted: ProjectCreate) -> ProjectRead:
        made: ProjectRead = self._transport.post("/projects", wanted)
        return made

    def list(self) -> Iterator[ProjectRead]:
        """All, newest first."""
        return self._transport.pages("/projects")

    def amend(self, project_id: str, wanted: ProjectAmendment) -> ProjectRead:
        """Change its quotas."""
        changed: ProjectRead = self._transport.patch(address("projects", project_id), wanted)
        return changed


class Principals:
    """People and programs that hold keys."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, wanted: PrincipalCreate) -> PrincipalRead:
        made: PrincipalRead = self._transport.post("/principals", wanted)
        return made

    def list(self) -> Iterator[PrincipalRead]:
        """All, newest first."""
        return self._transport.pages("/principals")

    def deactivate(self, principal_id: str) -> PrincipalRead:
        """Let it do nothing any more, with none of its keys."""
        gone: PrincipalRead = self._transport.delete(address("principals", principal_id))
        return gone


class ApiKeys:
    """What principals show."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, wanted: ApiKeyCreate) -> ApiKeyMade:
        """Make one; the answer holds the key itself, this once."""
        made: ApiKeyMade = self._transport.post("/api-keys", wanted)
        return made

    def list(self) -> Iterator[ApiKeyRead]:
        """All, those that open nothing any more among them."""
        return self._transport.pages("/api-keys")

    def revoke(self, key_id: str) -> ApiKeyRead:
        """Take one back: within five seconds it opens nothing any more."""
        gone: ApiKeyRead = self._transport.delete(address("api-keys", key_id))
        return gone


class Webhooks:
    """Addresses that events are sent to, signed (Standard Webhooks), and what was sent."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, wanted: WebhookEndpointCreate) -> WebhookEndpointSecret:
        """Have events sent to an address; the answer holds the secret, this once."""
        made: WebhookEndpointSecret = self._transport.post("/webhook-endpoints", wanted)
        return made

    def list(self) -> Iterator[WebhookEndpointRead]:
        """All, newest first."""
        return self._transport.pages("/webhook-endpoints")

    def read(self, endpoint_id: str) -> WebhookEndpointRead:
        found: WebhookEndpointRead = self._transport.get(address("webhook-endpoints", endpoint_id))
        return found

    def change(self, endpoint_id: str, wanted: WebhookEndpointChange) -> WebhookEndpointRead:
        changed: WebhookEndpointRead = self._transport.patch(address("webhook-endpoints", endpoint_id), wanted)
        return changed

    def delete(self, endpoint_id: str) -> None:
        """Send nothing there any more."""
        self._transport.delete(address("webhook-endpoints", endpoint_id))

    def rotate_secret(self, endpoint_id: str, overlap_hours: float = 24.0) -> WebhookEndpointSecret:
        """A new secret; the one before signs beside it for so long."""
        path = address("webhook-endpoints", endpoint_id, "rotate-secret")
        made: WebhookEndpointSecret = self._transport.post(path, {"overlap_hours": overlap_hours})
        return made

    def test(self, endpoint_id: str) -> WebhookDeliveryRead:
        """Send a message that says nothing, to see that it arrives."""
        made: WebhookDeliveryRead = self._transport.post(address("webhook-endpoints", endpoint_id, "test"))
        return made

    def deliveries(self, endpoint_id: str, *, status: Delivered | None = None) -> Iterator[WebhookDeliveryRead]:
        """What was sent there, and what still is to be; newest first."""
        return self._transport.pages(address("webhook-endpoints", endpoint_id, "deliveries"), status=status)

    def redeliver(self, endpoint_id: str, delivery_id: str) -> WebhookDeliveryRead:
        """Send a message once more, under its own id."""
        path = address("webhook-endpoints", endpoint_id, "deliveries", delivery_id, "redeliver")
        made: WebhookDeliveryRead = self._transport.post(path)
        return made


class Operations:
    """How the service is, who works, what waits, and what can be asked for."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def health(self) -> Health:
        """Is the process there?"""
        found: Health = self._transport.get("/healthz")
        return found

    def readiness(self) -> Readiness:
        """Are requests taken? Raises: ApiError: they are not."""
        found: Readiness = self._transport.get("/readyz")
        return found

    def catalogue(self) -> Catalogue:
        """Families, methods, verifiers and recipes."""
        found: Catalogue = self._transport.get("/catalogue")
        return found

    def workers(self) -> WorkerList:
        found: WorkerList = self._transport.get("/workers")
        return found

    def queue(self, *, limit: int | None = None) -> Queue:
        """What waits, in the order in which it will be taken."""
        found: Queue = self._transport.get("/queue", limit=limit)
        return found
