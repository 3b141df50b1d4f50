"""`expunge`: run the service, and speak to one.

Servers: `up` (all in one), `serve`, `worker`, `signer`, `migrate`. Client: `datasets`, `models`, `request`, `checkpoint`,
`audit`. Neither: `verify` (offline) and `demo`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service import __version__

app = typer.Typer(name="expunge", no_args_is_help=True, pretty_exceptions_show_locals=False, help=__doc__)
datasets = typer.Typer(no_args_is_help=True, help="Register and list datasets.")
models = typer.Typer(no_args_is_help=True, help="Register and list models.")
request = typer.Typer(no_args_is_help=True, help="Create, follow and cancel unlearn requests.")
checkpoint = typer.Typer(no_args_is_help=True, help="Download certified checkpoints.")
audit = typer.Typer(no_args_is_help=True, help="Read the audit ledger.")
for name, group in {
    "datasets": datasets,
    "models": models,
    "request": request,
    "checkpoint": checkpoint,
    "audit": audit,
}.items():
    app.add_typer(group, name=name)

out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="EXPUNGE_URL", help="The service's address.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_URL = "http://127.0.0.1:8000"


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


def _fail(message: str, status: int = 1) -> typer.Exit:
    err.print(f"[red]expunge:[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(status)


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
    _refuse_unless_loopback(settings.host, settings.bind_in_container)
    if log_file is None:
        err.print(f"Expunge {__version__} on http://{settings.host}:{settings.port} — Ctrl-C stops it", highlight=False)
    try:
        raise typer.Exit(supervisor.run(settings, log_file=log_file))
    except supervisor.AlreadyRunning as error:
        raise _fail(str(error), 2) from error


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback only.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Run the HTTP API."""
    for key, value in {"HOST": host, "PORT": port}.items():
        if value is not None:
            os.environ[f"EXPUNGE_{key}"] = str(value)
    import uvicorn

    from service.config import get_settings
    from service.processes import die_with_supervisor

    die_with_supervisor()
    _log_to_stderr()
    settings = get_settings()
    _refuse_unless_loopback(settings.host, settings.bind_in_container)
    uvicorn.run(
        "service.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def _refuse_unless_loopback(host: str, in_container: bool) -> None:
    from service.config import LOOPBACK

    if host in LOOPBACK or (in_container and host == "0.0.0.0"):  # noqa: S104 — published on the host's loopback only
        return
    raise _fail(
        f"will not listen on {host}: there are no API keys yet, so anyone who can reach the port could make a model forget. "
        "Listen on 127.0.0.1 and put a tunnel or an authenticating proxy in front.",
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
    """Run the signer: the one process that holds the signing key."""
    from service.certificates import signing
    from service.config import get_settings
    from service.processes import die_with_supervisor
    from service.storage import get_store

    die_with_supervisor()
    _log_to_stderr()
    settings = get_settings()
    key = signing.load_or_create_key(settings.key_file, settings.public_key_file)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signing.serve(settings.socket_path, signing.FileKeySigner(key, get_store(settings)), stop=stop)


@app.command()
def migrate() -> None:
    """Create the database's schema, or bring it up to date."""
    from service import migrate as migrations

    migrations.upgrade()
    out.print(f"database is at revision {migrations.current()}")


# ----------------------------------------------------------------------------------------------------------------- client


@contextmanager
def _client(url: str) -> Iterator[Any]:
    from service.client import ApiError, Client, DownloadRefused, Unreachable

    try:
        with Client(url) as client:
            yield client
    except (ApiError, Unreachable, DownloadRefused) as error:
        raise _fail(str(error)) from error


def _table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*[_cell(row.get(column)) for column in columns])
    out.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return "" if value is None else str(value)


def _show(value: Any) -> None:
    out.print_json(json.dumps(value))


@datasets.command("register")
def datasets_register(
    location: Annotated[str, typer.Argument(help="An .npz file or an image folder.")],
    class_name: Annotated[list[str], typer.Option("--class", help="A class name, in index order; repeat.")],
    name: Annotated[str | None, typer.Option()] = None,
    held_out: Annotated[Path | None, typer.Option(help="JSON list of ids that only verification may see.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Register images and labels; an .npz, or a folder that holds one, is taken for what it is."""
    holds_npz = location.endswith(".npz") or any(Path(location).glob("*.npz"))
    body: dict[str, Any] = {
        "format": "npz" if holds_npz else "image_folder",
        "location": str(Path(location).resolve()),
        "class_names": class_name,
    }
    if name:
        body["name"] = name
    if held_out:
        body["held_out_ids"] = json.loads(held_out.read_text())
    with _client(url) as client:
        _show(client.post("/datasets", body))


@datasets.command("list")
def datasets_list(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List datasets."""
    with _client(url) as client:
        rows = list(client.pages("/datasets"))
    _show(rows) if as_json else _table(rows, ["id", "name", "format", "class_names", "digest"])


@models.command("register")
def models_register(
    location: Annotated[Path, typer.Argument(help="A folder with safetensors weights.")],
    dataset: Annotated[str, typer.Option(help="Id of the dataset it was trained on.")],
    family: Annotated[str, typer.Option()] = "ddpm",
    class_name: Annotated[list[str] | None, typer.Option("--class", help="Default: the dataset's.")] = None,
    name: Annotated[str | None, typer.Option()] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Register a model; its files are hashed now and checked again before every run."""
    with _client(url) as client:
        classes = class_name or client.get(f"/datasets/{dataset}")["class_names"]
        body: dict[str, Any] = {
            "family": family,
            "location": str(location.resolve()),
            "dataset_id": dataset,
            "class_names": classes,
        }
        if name:
            body["name"] = name
        _show(client.post("/models", body))


@models.command("list")
def models_list(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List models."""
    with _client(url) as client:
        rows = list(client.pages("/models"))
    _show(rows) if as_json else _table(rows, ["id", "name", "family", "current_version", "class_names"])


@request.command("create")
def request_create(
    model: Annotated[str, typer.Argument(help="Model id.")],
    forget: Annotated[list[str], typer.Option("--forget", help="Class name or index; repeat.")],
    method: Annotated[str | None, typer.Option()] = None,
    params: Annotated[str | None, typer.Option(help="JSON object of method parameters.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    ranks: Annotated[int | None, typer.Option()] = None,
    reason: Annotated[str | None, typer.Option()] = None,
    external_id: Annotated[str | None, typer.Option()] = None,
    on_conflict: Annotated[str | None, typer.Option(help="queue_after, reject or use_existing.")] = None,
    idempotency_key: Annotated[str | None, typer.Option()] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Ask a model to forget classes."""
    body: dict[str, Any] = {"model_id": model, "forget": {"classes": forget}}
    optional = {"method": method, "seed": seed, "reason": reason, "external_id": external_id, "on_conflict": on_conflict}
    body.update({k: v for k, v in optional.items() if v is not None})
    if params is not None:
        try:
            body["params"] = json.loads(params)
        except ValueError as error:
            raise _fail("--params is not valid JSON", 3) from error
    if ranks is not None:
        body["resources"] = {"ranks": ranks}
    with _client(url) as client:
        created = client.post("/unlearn-requests", body, idempotency_key=idempotency_key)
        _show(created)
        if watch:
            _follow(client, created["id"])


@request.command("list")
def request_list(
    status: Annotated[list[str] | None, typer.Option()] = None,
    model: Annotated[str | None, typer.Option()] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List unlearn requests, newest first."""
    with _client(url) as client:
        rows = list(client.pages("/unlearn-requests", status=status, model_id=model))
    if as_json:
        _show(rows)
        return
    for row in rows:
        row["forget"] = row["forget"]["class_names"]
    _table(rows, ["id", "status", "phase", "model_id", "forget", "checkpoint_id", "created_at"])


@request.command("show")
def request_show(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Show one request with its attempts and findings."""
    with _client(url) as client:
        _show(client.get(f"/unlearn-requests/{request_id}"))


@request.command("watch")
def request_watch(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Follow a request; exit status 0 only if it succeeds."""
    with _client(url) as client:
        _follow(client, request_id)


def _follow(client: Any, request_id: str) -> None:
    from service.demo import follow

    final = follow(client, request_id, out)
    if final["status"] != "succeeded":
        raise _fail(f"the request ended as {final['status']}: {(final.get('error') or {}).get('message', '')}")
    out.print(f"checkpoint {final['checkpoint_id']}")


@request.command("cancel")
def request_cancel(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Cancel a request that has not ended."""
    with _client(url) as client:
        _show(client.post(f"/unlearn-requests/{request_id}/cancel"))


@checkpoint.command("download")
def checkpoint_download(checkpoint_id: str, directory: Path, url: Url = DEFAULT_URL) -> None:
    """Download a certified checkpoint and its certificate; every file is checked against the manifest."""
    with _client(url) as client:
        manifest = client.download_checkpoint(checkpoint_id, directory)
    out.print(f"{len(manifest['files'])} files in {directory}", soft_wrap=True)


@audit.command("list")
def audit_list(
    model: Annotated[str | None, typer.Option()] = None,
    request_id: Annotated[str | None, typer.Option("--request")] = None,
    action: Annotated[list[str] | None, typer.Option()] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List audit entries."""
    with _client(url) as client:
        rows = list(client.pages("/audit/entries", model_id=model, request_id=request_id, action=action))
    _show(rows) if as_json else _table(rows, ["seq", "at", "action", "outcome", "actor", "request_id", "model_id"])


@audit.command("export")
def audit_export(
    target: Annotated[Path | None, typer.Argument(help="Default: standard output.")] = None, url: Url = DEFAULT_URL
) -> None:
    """Export the whole ledger as JSON lines."""
    with _client(url) as client:
        if target is None:
            for line in client.stream_lines("/audit/export"):
                print(line)
            return
        part = target.with_name(target.name + ".part")
        with part.open("w") as file:
            for line in client.stream_lines("/audit/export"):
                file.write(line + "\n")
        part.replace(target)


# ---------------------------------------------------------------------------------------------------------------- neither


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="A downloaded checkpoint.")],
    key: Annotated[Path, typer.Option(help="The signer's public key (PEM).")],
    as_json: AsJson = False,
) -> None:
    """Check a downloaded checkpoint offline. Exit status: 0 good, 1 tampering, 2 cannot decide, 3 usage."""
    from service.verifier.__main__ import main

    raise typer.Exit(main([str(directory), "--key", str(key), *(["--json"] if as_json else [])]))


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
        err.print(f"[red]demo:[/] {fault}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result))
    raise typer.Exit(1 if faults else 0)


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
        err.print(f"[red]expunge:[/] a setting (EXPUNGE_…) is not valid: {wrong}", highlight=False, soft_wrap=True)
    except json.JSONDecodeError:
        err.print("[red]expunge:[/] a file that should hold JSON does not", highlight=False)
    except OSError as error:
        what = error.filename or "a file"
        err.print(f"[red]expunge:[/] {what}: {error.strerror}", highlight=False, soft_wrap=True)
    else:
        return
    sys.exit(3)


if __name__ == "__main__":
    main()
