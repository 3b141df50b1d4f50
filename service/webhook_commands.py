"""`expunge webhook …`: have events sent somewhere, and look after what was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from service.commands import DEFAULT_URL, AsJson, Url, err
from service.commands import _client as client_of
from service.commands import _show as show
from service.commands import _table as table

if TYPE_CHECKING:
    from service.client.administration import Delivered
    from service.client.bodies import WebhookEndpointCreate, WebhookEndpointSecret

webhook = typer.Typer(no_args_is_help=True, help="Have events sent somewhere, signed, and see what was sent.")


@webhook.command()
def create(
    address: Annotated[str, typer.Argument(help="An https:// URL on the public internet.")],
    event: Annotated[list[str] | None, typer.Option(help="Only events of this type; repeat. Default: all.")] = None,
    description: Annotated[str, typer.Option()] = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Have events sent to an address. The secret that they are signed with is printed this once."""
    with client_of(url) as client:
        wanted = {"url": address, "event_types": event or [], "description": description}
        _print_secret(client.webhooks.create(cast("WebhookEndpointCreate", wanted)), as_json)


@webhook.command("list")
def list_endpoints(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List addresses that events are sent to."""
    with client_of(url) as client:
        rows = list(client.webhooks.list())
    show(rows) if as_json else table(rows, ["id", "url", "enabled", "disabled_reason", "delivered_at", "event_types"])


@webhook.command()
def rotate(
    endpoint_id: str,
    overlap_hours: Annotated[float, typer.Option(min=0, help="So long the secret before signs, too.")] = 24.0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Give an endpoint a new secret. It is printed this once."""
    with client_of(url) as client:
        _print_secret(client.webhooks.rotate_secret(endpoint_id, overlap_hours), as_json)


@webhook.command()
def deliveries(
    endpoint_id: str,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed; default: all.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List what was sent to an endpoint, and what still is to be."""
    with client_of(url) as client:
        rows = list(client.webhooks.deliveries(endpoint_id, status=cast("Delivered | None", status)))
    show(rows) if as_json else table(rows, ["id", "type", "status", "attempts", "last_status", "last_error", "created_at"])


@webhook.command()
def redeliver(endpoint_id: str, delivery_id: str, url: Url = DEFAULT_URL) -> None:
    """Send a message once more, under its own id."""
    with client_of(url) as client:
        show(client.webhooks.redeliver(endpoint_id, delivery_id))


def _print_secret(made: WebhookEndpointSecret, as_json: bool) -> None:
    if as_json:
        show(made)
        return
    err.print(
        f"{made['id']} sends to {made['url']}; its secret, shown this once:", highlight=False, soft_wrap=True, markup=False
    )
    print(made["secret"])
