"""Commands about the ledger's private data: `expunge ledger destroy-kek` and `retain`."""

from __future__ import annotations

from typing import Annotated

import typer

from service.commands import fail, out


def destroy_kek(
    kek_id: Annotated[str, typer.Argument(help="A key's name, such as default.2026-11; /audit/reports/retention lists them.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Shred all that a month's key still seals, then destroy the key: no backup of the database opens any of it again."""
    from service.audit import retention
    from service.audit.vault import get_keys
    from service.errors import ServiceError

    if not yes:
        typer.confirm(f"Destroy {kek_id} for ever?", abort=True)
    try:
        done = retention.destroy_key(get_keys(), kek_id, actor=retention.OPERATOR)
    except (ServiceError, ValueError) as error:
        raise fail(str(error)) from error
    out.print(f"{kek_id} is destroyed" if done else f"{kek_id} was destroyed before")


def retain() -> None:
    """Shred what was kept long enough, and destroy keys that nothing needs: what every worker does each hour."""
    from service.audit import retention
    from service.audit.vault import get_keys
    from service.config import get_settings

    done = retention.sweep(get_keys(), get_settings().retain_private_months)
    out.print(f"{len(done.shredded)} entries shredded, {len(done.keys)} keys destroyed")
