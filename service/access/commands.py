"""`expunge keys …`: make, list and revoke API keys of a running service; `bootstrap` makes the first one, by the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from service.commands import DEFAULT_URL, AsJson, Url, _client, _show, _table, err, fail

if TYPE_CHECKING:
    from service.client.bodies import ApiKeyCreate, PrincipalCreate

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="Where the key is used; of a new principal, also who.")],
    principal: Annotated[str | None, typer.Option(help="Id of the key's owner.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="Make a new principal with this role; repeat.")] = None,
    program: Annotated[bool, typer.Option("--program", help="The new principal is a program, not a person.")] = False,
    project: Annotated[str | None, typer.Option(help="Project of the new principal; default: your own.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Until it expires.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make a key, for a principal that there is or for a new one. The key is printed this once."""
    if bool(principal) == bool(role):
        raise fail("say whose key it is: --principal ID, or --role ROLE for a new principal; not both", 3)
    with _client(url) as client:
        if principal is None:
            who = {"name": name, "roles": role, "kind": "service" if program else "user"}
            who |= {"project_id": project} if project else {}
            principal = client.principals.create(cast("PrincipalCreate", who))["id"]
        body: ApiKeyCreate = {"principal_id": principal, "name": name}
        if days:
            body["expires_in_days"] = days
        made = client.keys.create(body)
    _print_once(made, as_json)


def _print_once(made: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        _show(made)
        return
    err.print(f"{made['id']} of {made['principal_id']}, until {made['expires_at']}; this is shown once:", highlight=False)
    print(made["key"])


@keys.command("list")
def list_keys(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List keys, those that open nothing any more among them."""
    with _client(url) as client:
        rows = list(client.keys.list())
    columns = ["id", "project_id", "principal_id", "name", "expires_at", "revoked_at", "last_used_at"]
    _show(rows) if as_json else _table(rows, columns)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="How the key begins: expk_ and 16 characters.")], url: Url = DEFAULT_URL
) -> None:
    """Take a key back: within five seconds it opens nothing any more, on any host."""
    with _client(url) as client:
        _show(client.keys.revoke(key_id))


@keys.command()
def bootstrap(
    name: Annotated[str, typer.Option(help="Whose key it is, for people.")] = "first admin", as_json: AsJson = False
) -> None:
    """Make the first admin and a key, in the database of this installation. Refused while an admin's key still opens."""
    from service.access import service
    from service.access.errors import AdminExists

    try:
        row, key = service.bootstrap(name)
    except AdminExists as error:
        raise fail(str(error), 2) from error
    made = {"id": row.id, "principal_id": row.principal_id, "expires_at": row.expires_at.isoformat(), "key": key}
    _print_once(made, as_json)
