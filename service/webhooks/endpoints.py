"""/webhook-endpoints"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.auth import CurrentActor, allowed
from service.db import now, reading
from service.edge import writing
from service.errors import InvalidCursor, Unprocessable, problems
from service.paging import Page, PageQuery, fetch_page, page
from service.tables import WebhookDelivery, WebhookEndpoint
from service.webhooks import service
from service.webhooks.schemas import (
    DeliveryQuery,
    RotateSecret,
    WebhookDeliveryRead,
    WebhookEndpointChange,
    WebhookEndpointCreate,
    WebhookEndpointRead,
    WebhookEndpointSecret,
)
from service.webhooks.service import (
    BadWebhookUrl,
    EndpointDisabled,
    TooManyWebhookEndpoints,
    WebhookDeliveryNotFound,
    WebhookEndpointNotFound,
)

router = APIRouter(prefix="/webhook-endpoints", tags=["webhooks"])
NO_STORE = "no-store"


@router.post(
    "",
    dependencies=[allowed("webhooks:manage")],
    status_code=201,
    response_model=WebhookEndpointSecret,
    summary="Have events sent somewhere",
    responses=problems(BadWebhookUrl, TooManyWebhookEndpoints, Unprocessable),
)
def create_webhook_endpoint(
    wanted: WebhookEndpointCreate, request: Request, response: Response, actor: CurrentActor
) -> WebhookEndpointSecret:
    """The answer holds the secret that messages are signed with; it is not shown again."""
    with writing() as session:
        row, secret = service.create(session, request.app.state.settings, wanted, actor)
        shown = service.read(row, row.created_at)
    response.headers.update({"Location": f"/webhook-endpoints/{row.id}", "Cache-Control": NO_STORE})
    return WebhookEndpointSecret(**shown.model_dump(), secret=secret)


@router.get(
    "",
    dependencies=[allowed("webhooks:read")],
    response_model=Page[WebhookEndpointRead],
    summary="List webhook endpoints",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_webhook_endpoints(query: Annotated[PageQuery, Query()], request: Request, response: Response) -> dict[str, Any]:
    """Newest first."""
    with reading() as session:
        found = fetch_page(session, service.listed(), (WebhookEndpoint.created_at, WebhookEndpoint.id), query, "desc")
        at = now(session)
    return page(found, lambda row: service.read(row, at), request, response)


@router.get(
    "/{endpoint_id}",
    dependencies=[allowed("webhooks:read")],
    response_model=WebhookEndpointRead,
    summary="Read a webhook endpoint",
    responses=problems(WebhookEndpointNotFound),
)
def read_webhook_endpoint(endpoint_id: str) -> WebhookEndpointRead:
    """Where it sends to, what, and whether it still does."""
    with reading() as session:
        return service.read(service.get(session, endpoint_id), now(session))


@router.patch(
    "/{endpoint_id}",
    dependencies=[allowed("webhooks:manage")],
    response_model=WebhookEndpointRead,
    summary="Change a webhook endpoint",
    responses=problems(WebhookEndpointNotFound, BadWebhookUrl, Unprocessable),
)
def change_webhook_endpoint(
    endpoint_id: str, wanted: WebhookEndpointChange, request: Request, actor: CurrentActor
) -> WebhookEndpointRead:
    """Address, events, and whether anything is sent. What is switched off hears nothing of what happens meanwhile."""
    with writing() as session:
        row = service.change(session, request.app.state.settings, endpoint_id, wanted, actor)
        return service.read(row, now(session))


@router.delete(
    "/{endpoint_id}",
    dependencies=[allowed("webhooks:manage")],
    status_code=204,
    response_class=Response,
    summary="Have nothing sent there any more",
    responses=problems(WebhookEndpointNotFound),
)
def delete_webhook_endpoint(endpoint_id: str, actor: CurrentActor) -> Response:
    """Its deliveries are forgotten, too."""
    with writing() as session:
        service.remove(session, endpoint_id, actor)
    return Response(status_code=204)


@router.post(
    "/{endpoint_id}/rotate-secret",
    dependencies=[allowed("webhooks:manage")],
    response_model=WebhookEndpointSecret,
    summary="Give an endpoint a new secret",
    responses=problems(WebhookEndpointNotFound, Unprocessable),
)
def rotate_webhook_secret(
    endpoint_id: str, request: Request, response: Response, actor: CurrentActor, wanted: RotateSecret | None = None
) -> WebhookEndpointSecret:
    """Until the overlap has passed each message carries two signatures, by the new secret and by the one before."""
    overlap = timedelta(hours=(wanted or RotateSecret()).overlap_hours)
    with writing() as session:
        row, secret = service.rotate(session, request.app.state.settings, endpoint_id, overlap, actor)
        shown = service.read(row, now(session))
    response.headers["Cache-Control"] = NO_STORE
    return WebhookEndpointSecret(**shown.model_dump(), secret=secret)


@router.post(
    "/{endpoint_id}/test",
    dependencies=[allowed("webhooks:manage")],
    status_code=202,
    response_model=WebhookDeliveryRead,
    summary="Send a test message",
    responses=problems(WebhookEndpointNotFound, EndpointDisabled),
)
def send_test_webhook(endpoint_id: str) -> WebhookDeliveryRead:
    """Of the type `webhook_endpoint.test`; sent and retried as any other."""
    with writing() as session:
        return service.read_delivery(service.test(session, endpoint_id))


@router.get(
    "/{endpoint_id}/deliveries",
    dependencies=[allowed("webhooks:read")],
    response_model=Page[WebhookDeliveryRead],
    summary="What was sent, and what still is to be",
    responses=problems(WebhookEndpointNotFound, InvalidCursor, Unprocessable),
)
def list_webhook_deliveries(
    endpoint_id: str, query: Annotated[DeliveryQuery, Query()], request: Request, response: Response
) -> dict[str, Any]:
    """Newest first; 30 days of them."""
    keys = (WebhookDelivery.created_at, WebhookDelivery.id)
    with reading() as session:
        service.get(session, endpoint_id)
        found = fetch_page(session, service.deliveries_of(endpoint_id, query.status), keys, query, "desc")
    return page(found, service.read_delivery, request, response)


@router.post(
    "/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    dependencies=[allowed("webhooks:manage")],
    status_code=202,
    response_model=WebhookDeliveryRead,
    summary="Send a message once more",
    responses=problems(WebhookEndpointNotFound, WebhookDeliveryNotFound, EndpointDisabled),
)
def redeliver_webhook(endpoint_id: str, delivery_id: str) -> WebhookDeliveryRead:
    """A new delivery with the same `webhook-id` and body."""
    with writing() as session:
        return service.read_delivery(service.redeliver(session, endpoint_id, delivery_id))
