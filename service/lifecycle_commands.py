"""The commands that change a request which is made: `expunge request pause|resume|approve|reject|retry|prioritise`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from service.commands import DEFAULT_URL, Url
from service.commands import _client as client_of
from service.commands import _json as parsed
from service.commands import _show as show

if TYPE_CHECKING:
    from service.client.bodies import Amendment, Retry


def pause(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Keep a request from running; one that runs leaves a step checkpoint first. No law's clock stops."""
    with client_of(url) as client:
        show(client.requests.pause(request_id))


def resume(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Put a paused request back into the queue."""
    with client_of(url) as client:
        show(client.requests.resume(request_id))


def approve(
    request_id: str,
    digest: Annotated[str, typer.Argument(help="`approvals.request_digest` of the request that you have read.")],
    comment: Annotated[str | None, typer.Option()] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Approve a request that waits for it. Refused where it was changed since, and where it is your own."""
    with client_of(url) as client:
        show(client.requests.approve(request_id, digest, comment))


def reject(request_id: str, reason: Annotated[str, typer.Option(help="Why it is not to run.")], url: Url = DEFAULT_URL) -> None:
    """Reject a request that waits for approval. It has ended then."""
    with client_of(url) as client:
        show(client.requests.reject(request_id, reason))


def retry(
    request_id: str,
    method: Annotated[str | None, typer.Option(help="Another method; default: as it was.")] = None,
    params: Annotated[str | None, typer.Option(help="JSON object of method parameters, in place of the earlier ones.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    policy: Annotated[str | None, typer.Option(help="Another verification policy; default: as it was.")] = None,
    idempotency_key: Annotated[str | None, typer.Option()] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Take up a request that ended without a result: a new one, with the same law's clock."""
    wanted = None if params is None else parsed(params, "--params")
    given = {"method": method, "params": wanted, "seed": seed, "policy": policy}
    different = cast("Retry", {k: v for k, v in given.items() if v is not None})
    with client_of(url) as client:
        show(client.requests.retry(request_id, different, idempotency_key=idempotency_key))


def prioritise(
    request_id: str,
    priority: Annotated[str, typer.Argument(help="urgent, standard or bulk.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Say how urgent a request is among those whose latest start is the same, or that have none."""
    with client_of(url) as client:
        show(client.requests.amend(request_id, cast("Amendment", {"priority": priority})))
