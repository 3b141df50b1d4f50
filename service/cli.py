"""`expunge`: run the service, and speak to one.

Servers: `up` (all in one), `serve`, `worker`, `signer`, `metrics`, `migrate`. Client: `datasets`, `models`, `request`,
`checkpoint`, `audit`, `webhook`, `keys`. Neither: `ledger` (beside the signer or the database), `gc` (beside database and
store), `witness` (elsewhere), `verify` (offline), `verify-model` and `demo`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from service import __version__, lifecycle_commands, operations_commands, privacy_commands, storage_commands
from service.access.commands import keys
from service.commands import GROUPS, AsJson, err, fail, out
from service.ledger_commands import ledger, witness
from service.webhook_commands import webhook

if TYPE_CHECKING:
    from service.config import Settings

app = typer.Typer(name="expunge", no_args_is_help=True, pretty_exceptions_show_locals=False, help=__doc__)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
app.add_typer(ledger, name="ledger")
app.add_typer(webhook, name="webhook")
app.add_typer(keys, name="keys")
app.command()(witness)
app.command()(storage_commands.gc)
app.command()(operations_commands.metrics)
for command in (
    lifecycle_commands.pause, lifecycle_commands.resume, lifecycle_commands.approve, lifecycle_commands.reject,
    lifecycle_commands.retry, lifecycle_commands.prioritise,
):  # fmt: skip
    GROUPS["request"].command()(command)
ledger.command("destroy-kek")(privacy_commands.destroy_kek)
ledger.command("retain")(privacy_commands.retain)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    key_file: Annotated[
        Path | None,
        typer.Option(envvar="EXPUNGE_API_KEY_FILE", help="File with the API key of the client commands; or EXPUNGE_API_KEY."),
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    if key_file is not None:
        os.environ["EXPUNGE_API_KEY_FILE"] = str(key_file)


def _log_to_stderr() -> None:
    from service.logs import configure

    configure(logging.INFO)


# ---------------------------------------------------------------------------------------------------------------- servers


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="The API's port.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Database, store, keys and job directories.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Most ranks of one run.")] = None,
    log_file: Annotated[Path | None, typer.Option(help="Write the children's logs here instead of the terminal.")] = None,
) -> None:
    """Run API, worker and signer on this machine, with SQLite and no server to install."""
    for key, value in {"PORT": port, "DATA_DIR": data_dir, "RANKS": ranks}.items():
        if value is not None:
            os.environ[f"EXPUNGE_{key}"] = str(value)
    from service import supervisor
    from service.config import get_settings
    from service.processes import die_with_supervisor

    die_with_supervisor()
    _log_to_stderr()
    settings = get_settings()
    _refuse_unless_loopback(settings)
    if log_file is None:
        err.print(f"Expunge {__version__} on http://{settings.host}:{settings.port} — Ctrl-C stops it", highlight=False)
    try:
        raise typer.Exit(supervisor.run(settings, log_file=log_file))
    except supervisor.AlreadyRunning as error:
        raise fail(str(error), 2) from error


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; loopback only, unless EXPUNGE_AUTH is `required`.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    api_workers: Annotated[int | None, typer.Option(help="Processes that answer; several need PostgreSQL.")] = None,
) -> None:
    """Run the HTTP API."""
    for key, value in {"HOST": host, "PORT": port, "API_WORKERS": api_workers}.items():
        if value is not None:
            os.environ[f"EXPUNGE_{key}"] = str(value)
    from service import serving
    from service.config import get_settings
    from service.processes import die_with_supervisor

    die_with_supervisor()
    _log_to_stderr()
    settings = get_settings()
    _refuse_unless_loopback(settings)
    try:
        serving.run(settings)
    except serving.OneProcess as error:
        raise fail(str(error), 2) from error


def _refuse_unless_loopback(settings: Settings) -> None:
    from service.config import LOOPBACK

    host, in_container = settings.host, settings.bind_in_container
    if settings.auth == "required" or host in LOOPBACK:
        return
    if in_container and host == "0.0.0.0":  # noqa: S104 — published on the host's loopback only
        return
    raise fail(
        f"will not listen on {host}: with EXPUNGE_AUTH=local anyone who can reach the port could make a model forget; "
        "set EXPUNGE_AUTH=required and make a key with `expunge keys bootstrap`, or listen on 127.0.0.1.",
        2,
    )


@app.command()
def worker(ranks: Annotated[int | None, typer.Option(help="Most ranks of one run; unset: every GPU, or 1.")] = None) -> None:
    """Run a worker: takes requests from the queue and runs them."""
    if ranks is not None:
        os.environ["EXPUNGE_RANKS"] = str(ranks)
    from service.processes import die_with_supervisor

    die_with_supervisor()
    os.execv(sys.executable, [sys.executable, "-m", "worker.conductor"])  # noqa: S606 — same interpreter, fixed arguments


@app.command()
def signer() -> None:
    """Run the signer: the one process that holds the keys of certificates and of the ledger's checkpoints."""
    from service import sockets
    from service.audit import logsigner
    from service.certificates import signing
    from service.config import get_settings
    from service.processes import die_with_supervisor
    from service.storage import get_store

    die_with_supervisor()
    _log_to_stderr()
    settings = get_settings()
    try:
        folder = logsigner.open_folder(settings.log_folder, settings.log_keys_file, settings.ledger_origin)
        key = signing.open_key(settings)
    except (ValueError, OSError) as error:
        raise fail(str(error), 2) from error
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    desks = {
        **signing.desks(signing.KeySigner(key, get_store(settings), folder.origin)),
        "log": logsigner.desk(logsigner.LogSigner(folder)),
    }
    sockets.serve(settings.socket_path, desks, stop=stop)


@app.command()
def migrate() -> None:
    """Create the database's schema, or bring it up to date."""
    from service import migrate as migrations

    migrations.upgrade()
    out.print(f"database is at revision {migrations.current()}")


# ---------------------------------------------------------------------------------------------------------------- neither


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="ledger|certificate|receipt|dossier …",
)
def verify(context: typer.Context) -> None:
    """Check offline what was published. Exit status: 0 good, 1 tampering, 2 cannot decide, 3 usage.

    `expunge verify DIR --key FILE` checks a downloaded checkpoint; `expunge verify --help` lists the rest.
    """
    from service.verifier.__main__ import main

    raise typer.Exit(main(context.args))


@app.command(
    "verify-model",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="DIR --policy NAME|FILE --data DIR --original DIR …",
)
def verify_model(context: typer.Context) -> None:
    """Run the verification gate again on a published checkpoint. Exit status: 0 PASS, 1 FAIL, 2 usage, 3 INCONCLUSIVE, 4 else.

    `expunge verify-model --help` lists its options.
    """
    command = [sys.executable, "-m", "worker.conductor.verify_model", *context.args]
    os.execv(sys.executable, command)  # noqa: S606 — same interpreter, the caller's own arguments


@app.command()
def demo(
    forget: Annotated[str, typer.Option(help="The digit to forget.")] = "3",
    output: Annotated[Path, typer.Option("--out", help="Where checkpoint and picture go.")] = Path("expunge-demo"),
    seed: Annotated[int, typer.Option()] = 0,
    ranks: Annotated[int | None, typer.Option()] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the service's database and store.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a real image generator forget a digit, end to end, on this machine."""
    from service.demo import Demo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit, so that the service is stopped and its folder removed
    console = Console(stderr=as_json)
    result, faults = Demo(forget, output, seed, ranks, console, keep).run()
    for fault in faults:
        err.print(f"[red]demo:[/] {escape(fault)}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result))
    raise typer.Exit(1 if faults else 0)


def _why_no_database(error: Exception) -> str | None:
    """The driver's own words, which name host and user and no password. None: it is another error."""
    known = sys.modules.get("sqlalchemy.exc")  # most commands never import it, and it takes long
    if known is None or not isinstance(error, known.OperationalError):
        return None
    return str(error.orig).strip().partition("\n")[0]


def main() -> None:
    """The `expunge` command. A mistake of the user's is a sentence, not a traceback."""
    from pydantic import ValidationError

    if sys.argv[1:2] == ["verify"]:  # the verifier reads its own arguments: its exit statuses are a promise
        from service.verifier.__main__ import main as verify_main

        sys.exit(verify_main(sys.argv[2:]))
    try:
        app()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
        err.print(f"[red]expunge:[/] a setting (EXPUNGE_…) is not valid: {escape(wrong)}", highlight=False, soft_wrap=True)
    except json.JSONDecodeError:
        err.print("[red]expunge:[/] a file that should hold JSON does not", highlight=False)
    except OSError as error:
        what = error.filename or "a file"
        err.print(f"[red]expunge:[/] {escape(str(what))}: {error.strerror}", highlight=False, soft_wrap=True)
    except Exception as error:
        if (why := _why_no_database(error)) is None:
            raise
        err.print(f"[red]expunge:[/] the database: {escape(why)}", highlight=False, soft_wrap=True)
    else:
        return
    sys.exit(3)


if __name__ == "__main__":
    main()
