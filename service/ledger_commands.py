"""The commands around the ledger's signatures: `expunge ledger …` beside the signer, `expunge witness` anywhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands import fail, out

if TYPE_CHECKING:
    from service.audit.logsigner import Folder
    from service.verifier.note import Key

ledger = typer.Typer(no_args_is_help=True, help="The log's keys and policy; run it where the signer runs.")


def _folder() -> Folder:
    from service.audit.logsigner import open_folder
    from service.config import get_settings

    settings = get_settings()
    try:
        return open_folder(settings.log_folder, settings.log_keys_file, settings.ledger_origin)
    except ValueError as error:
        raise fail(str(error)) from error


def _origin(folder: Folder) -> str:
    from service.audit.logsigner import LOST

    state = folder.state()
    if state is None:
        raise fail(LOST)
    return state.origin


@ledger.command()
def policy() -> None:
    """Print the policy that others check this ledger with: the log's keys, witnesses, quorum (C2SP tlog-policy)."""
    from service.audit import trust
    from service.config import get_settings
    from service.verifier.note import Malformed

    try:
        trust.policy(get_settings())
        sys.stdout.write(trust.policy_text(get_settings()))
    except (trust.NoLogKey, Malformed) as error:
        raise fail(str(error)) from error


@ledger.command("rotate-key")
def rotate_key() -> None:
    """Make a new key, which signs beside the old one from the next checkpoint on.

    Give the new policy to everybody who checks the ledger, then end the overlap with `retire-key`.
    """
    folder = _folder()
    with folder.locked():
        origin = _origin(folder)
        made = folder.add_key(origin)
        folder.publish(origin)
    out.print(f"{made}", soft_wrap=True, highlight=False, markup=False)


@ledger.command("retire-key")
def retire_key(key_id: Annotated[str, typer.Argument(help="The 8 hex digits in the middle of its verifier key.")]) -> None:
    """Stop signing with a key, and erase its private half. Checkpoints that it signed alone need the policy of their time."""
    folder = _folder()
    with folder.locked():
        origin = _origin(folder)
        try:
            gone = folder.retire_key(origin, key_id)
        except LookupError as error:
            raise fail(str(error.args[0])) from error
        folder.publish(origin)
    out.print(f"retired {gone}", soft_wrap=True, highlight=False, markup=False)


@ledger.command()
def adopt(
    checkpoint: Annotated[Path, typer.Argument(help="The newest that you trust.")],
    proof: Annotated[Path | None, typer.Option(help="Answer of GET /audit/proof/consistency.")] = None,
) -> None:
    """Tell a signer that lost its record, or whose record is of an old backup, what it signed last.

    Take the newest checkpoint that anybody has: what was signed after it will not be missed. Over a record that is there it
    takes a proof that the checkpoint extends it.
    """
    from service.audit import logsigner
    from service.verifier.note import Malformed, Refused

    try:
        found = logsigner.adopt(_folder(), checkpoint.read_text(), _hashes(proof))
    except (Malformed, Refused) as error:
        raise fail(str(error)) from error
    out.print(f"the log {found.origin} goes on from {found.size} entries", soft_wrap=True)


def _hashes(proof: Path | None) -> list[bytes]:
    """Of a consistency proof as the service gives it."""
    import base64
    import json

    if proof is None:
        return []
    try:
        return [base64.b64decode(one, validate=True) for one in json.loads(proof.read_text())["hashes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise fail(f"{proof} is no answer of GET /audit/proof/consistency") from error


def witness(
    name: Annotated[str, typer.Option(help="The witness's own name, such as witness.example/w1; fixed for ever.")],
    state: Annotated[Path, typer.Option(help="File of what was seen; losing it makes a witness believe anything once.")],
    key: Annotated[Path, typer.Option(help="PEM of its Ed25519 key, made on first use.")],
    log_vkey: Annotated[list[str] | None, typer.Option(help="Verifier key of a log to watch; repeat.")] = None,
    policy_file: Annotated[Path | None, typer.Option("--policy", help="A C2SP tlog-policy, for its log lines.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8010,
) -> None:
    """Witness somebody's ledger: cosign its checkpoints as long as each extends the one before (C2SP tlog-witness)."""
    import logging

    import uvicorn

    from service import logs
    from service.audit import keys
    from service.audit import witness as witnessing
    from service.verifier.note import Key, Malformed

    logs.configure(logging.INFO)
    try:
        watched = _watched(log_vkey or [], policy_file)
        with witnessing.opened(name, keys.load_or_create(key), watched, state) as one:
            Key.parse(str(one.key))  # a name with spaces or a plus would make it unreadable
            print(f"witness {one.key}", flush=True)
            uvicorn.run(witnessing.make_app(one), host=host, port=port, log_config=None, server_header=False)
    except (witnessing.InUse, Malformed, ValueError, KeyError) as error:
        raise fail(str(error), 3) from error


def _watched(vkeys: list[str], policy_file: Path | None) -> list[Key]:
    from service.verifier.note import ED25519, Key, Malformed, Policy

    found = [Key.parse(vkey) for vkey in vkeys]
    found += Policy.parse(policy_file.read_text()).logs if policy_file else []
    if not found or any(one.kind != ED25519 for one in found):
        raise Malformed("say which log to watch: --log-vkey KEY, or --policy FILE with log lines")
    return found
