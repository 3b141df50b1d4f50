"""The command beside database and store: `expunge gc`."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Annotated

import typer

from service.commands import AsJson, fail, out

AGE = re.compile(r"(\d{1,6})([mhd])")
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _age(text: str) -> timedelta:
    found = AGE.fullmatch(text)
    if found is None:
        raise typer.BadParameter("expected a number and m, h or d, such as 12h or 7d")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and delete nothing.")] = False,
    older_than: Annotated[
        str | None, typer.Option(help="Age that garbage has at least: 12h, 7d. Unset: EXPUNGE_STORE_GRACE_DAYS.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete from the store what no row names: what every worker does every six hours."""
    from service import garbage
    from service.config import get_settings
    from service.storage import StoreError, get_store

    settings = get_settings()
    age = timedelta(days=settings.store_grace_days) if older_than is None else _age(older_than)
    try:
        done = garbage.collect(get_store(settings), older=age, dry_run=dry_run)
    except StoreError as error:
        raise fail(str(error)) from error
    if as_json:
        print(json.dumps({"dry_run": dry_run, **vars(done)}))
    else:
        files = f"{done.objects} objects and {done.temporaries + done.unfinished} unfinished uploads, {done.size} bytes"
        out.print(f"would delete {files}" if dry_run else f"deleted {files}; {done.failed} could not be deleted")
    if done.failed:
        raise typer.Exit(1)
