"""The commands that speak to a running service: `datasets`, `models`, `request`, `checkpoint`, `audit`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from service.client import Client
    from service.client.bodies import DatasetCreate, ForgetSet, ModelCreate, UnlearnRequestCreate
    from service.client.ledger import EntryFilters
    from service.client.requests import Status

datasets = typer.Typer(no_args_is_help=True, help="Register and list datasets.")
models = typer.Typer(no_args_is_help=True, help="Register and list models.")
request = typer.Typer(no_args_is_help=True, help="Create, follow, pause, retry and cancel unlearn requests.")
checkpoint = typer.Typer(no_args_is_help=True, help="Download certified checkpoints.")
audit = typer.Typer(no_args_is_help=True, help="Read the audit ledger.")
GROUPS = {"datasets": datasets, "models": models, "request": request, "checkpoint": checkpoint, "audit": audit}

out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="EXPUNGE_URL", help="The service's address.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_URL = "http://127.0.0.1:8000"
WIDE = 1000
"""Columns of what is no terminal: an id that is folded into pieces is found by no other program."""
OWED = 4
"""Exit status of a download that has everything but receipts, which do not exist yet."""


def fail(message: str, status: int = 1) -> typer.Exit:
    """Say what is wrong, and the exit to raise. What is in square brackets is somebody's words, and no markup."""
    err.print(f"[red]expunge:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(status)


def _api_key() -> str | None:
    """From `--key-file`, else from the environment. It is never an argument: these are in every process list."""
    file = os.environ.get("EXPUNGE_API_KEY_FILE")
    text = _text(Path(file)) if file else os.environ.get("EXPUNGE_API_KEY", "")
    key = text.strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise fail("the API key is not one line of plain characters", 3)
    return key or None


@contextmanager
def _client(url: str) -> Iterator[Client]:
    from service.client import ApiError, Client, Unreachable
    from service.fetching import DownloadRefused

    try:
        with Client(url, key=_api_key()) as client:
            yield client
    except (ApiError, Unreachable, DownloadRefused) as error:
        raise fail(str(error)) from error


def _table(rows: Sequence[Mapping[str, Any]], columns: list[str]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*[escape(_cell(row.get(column))) for column in columns])
    (out if out.is_terminal else Console(width=WIDE)).print(table)


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
        body["held_out_ids"] = _json(_text(held_out), "--held-out")
    with _client(url) as client:
        _show(client.datasets.create(cast("DatasetCreate", body)))


@datasets.command("list")
def datasets_list(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List datasets."""
    with _client(url) as client:
        rows = list(client.datasets.list())
    _show(rows) if as_json else _table(rows, ["id", "name", "format", "class_names", "digest"])


@models.command("register")
def models_register(
    location: Annotated[Path, typer.Argument(help="A folder with safetensors weights.")],
    dataset: Annotated[str, typer.Option(help="Id of the dataset it was trained on.")],
    family: Annotated[str, typer.Option()] = "ddpm",
    class_name: Annotated[list[str] | None, typer.Option("--class", help="Default: the dataset's.")] = None,
    name: Annotated[str | None, typer.Option()] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSON object: a prompt by class name; text-conditional models.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Register a model; its files are hashed now and checked again before every run."""
    with _client(url) as client:
        classes = class_name or client.datasets.read(dataset)["class_names"]
        body: dict[str, Any] = {
            "family": family,
            "location": str(location.resolve()),
            "dataset_id": dataset,
            "class_names": classes,
        }
        if name:
            body["name"] = name
        if prompts:
            body["prompts"] = _json(_text(prompts), "--prompts")
        _show(client.models.create(cast("ModelCreate", body)))


@models.command("list")
def models_list(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List models."""
    with _client(url) as client:
        rows = list(client.models.list())
    _show(rows) if as_json else _table(rows, ["id", "name", "family", "current_version", "class_names"])


@request.command("create")
def request_create(
    model: Annotated[str, typer.Argument(help="Model id.")],
    forget: Annotated[list[str] | None, typer.Option("--forget", help="Class name or index; repeat.")] = None,
    sample: Annotated[list[str] | None, typer.Option("--sample", help="Id of a training item, instead; repeat.")] = None,
    samples_file: Annotated[Path | None, typer.Option(help="Ids of training items, one a line or as JSON.")] = None,
    retain_class: Annotated[
        list[str] | None,
        typer.Option("--retain-class", help="Class whose real images may be trained on; default: all; repeat."),
    ] = None,
    retain_real: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of real retained images; default: 0 with proxy data, 1 without.")
    ] = None,
    proxy_class: Annotated[
        list[str] | None, typer.Option("--proxy-class", help="Class that stands in for retained ones, set aside; repeat.")
    ] = None,
    proxy_dataset: Annotated[str | None, typer.Option(help="Id of a dataset that stands in for retained images.")] = None,
    method: Annotated[str | None, typer.Option()] = None,
    params: Annotated[str | None, typer.Option(help="JSON object of method parameters.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    policy: Annotated[str | None, typer.Option(help="Verification policy that the result is held to; see /policies.")] = None,
    ranks: Annotated[int | None, typer.Option()] = None,
    gpu_class: Annotated[str | None, typer.Option(help="Only workers that serve it take the request.")] = None,
    priority: Annotated[str | None, typer.Option(help="urgent, standard or bulk.")] = None,
    reason: Annotated[str | None, typer.Option()] = None,
    external_id: Annotated[str | None, typer.Option()] = None,
    on_conflict: Annotated[str | None, typer.Option(help="queue_after, reject or use_existing.")] = None,
    idempotency_key: Annotated[str | None, typer.Option()] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Ask a model to forget classes (--forget), or single training items (--sample, --samples-file)."""
    body: dict[str, Any] = {"model_id": model, "forget": _wish(forget, sample, samples_file)}
    optional = {"method": method, "seed": seed, "policy": policy, "reason": reason, "external_id": external_id}
    optional |= {"on_conflict": on_conflict, "priority": priority}
    body.update({k: v for k, v in optional.items() if v is not None})
    if retain := _retain(retain_class, retain_real, proxy_class, proxy_dataset):
        body["retain"] = retain
    if params is not None:
        body["params"] = _json(params, "--params")
    if resources := {k: v for k, v in {"ranks": ranks, "gpu_class": gpu_class}.items() if v is not None}:
        body["resources"] = resources
    with _client(url) as client:
        created = client.requests.create(cast("UnlearnRequestCreate", body), idempotency_key=idempotency_key)
        _show(created)
        if watch:
            _follow(client, created["id"])


def _wish(classes: list[str] | None, samples: list[str] | None, samples_file: Path | None) -> dict[str, list[str]]:
    ids = [*(samples or []), *(_ids(samples_file) if samples_file else [])]
    if bool(classes) == bool(ids):
        raise fail("say what to forget: --forget CLASS, or --sample ID and --samples-file FILE; not both", 3)
    return {"classes": classes} if classes else {"samples": ids}


def _retain(
    classes: list[str] | None, real: float | None, proxy_classes: list[str] | None, proxy_dataset: str | None
) -> dict[str, Any]:
    """Only what was given: the service knows what the rest means, and what does not go together."""
    proxy = {k: v for k, v in {"classes": proxy_classes, "dataset_id": proxy_dataset}.items() if v}
    return {k: v for k, v in {"classes": classes or None, "real": real, "proxy": proxy or None}.items() if v is not None}


def _ids(file: Path) -> list[str]:
    """The ids in a file: a JSON list, alone or under `samples`; whatever is no JSON list or object as a whole is lines."""
    text = _text(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = value["samples"] if set(value) == {"samples"} else []
    elif not isinstance(value, list):
        return [line for line in text.splitlines() if line.strip()]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) or type(v) is int for v in value):
        raise fail("--samples-file: expected one id a line, or JSON: a list of ids, or an object with nothing but samples", 3)
    return [str(name) for name in value]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise fail(f"{file}: expected text in UTF-8", 3) from error


def _json(text: str, what: str) -> Any:
    """A value that can be sent: JSON has no NaN, and no number beyond the largest float."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise fail(f"{what} is not valid JSON", 3) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


@request.command("list")
def request_list(
    status: Annotated[list[str] | None, typer.Option()] = None,
    model: Annotated[str | None, typer.Option()] = None,
    overdue: Annotated[
        bool | None, typer.Option("--overdue/--not-overdue", help="Past their deadline without an answer, or not.")
    ] = None,
    due_before: Annotated[str | None, typer.Option(help="Whose deadline is before this time, with its offset.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List unlearn requests, newest first."""
    chosen = cast("list[Status] | None", status)
    with _client(url) as client:
        rows = list(client.requests.list(status=chosen, model_id=model, overdue=overdue, due_before=due_before))
    if as_json:
        _show(rows)
        return
    shown = [{**row, "forget": _forgotten(row["forget"])} for row in rows]
    _table(shown, ["id", "status", "phase", "model_id", "forget", "due_at", "checkpoint_id", "created_at"])


def _forgotten(forget: ForgetSet) -> list[str]:
    count = forget["samples"]["count"]
    return [*forget["class_names"], *([f"{count} samples"] if count else [])]


@request.command("show")
def request_show(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Show one request with its attempts and findings."""
    with _client(url) as client:
        _show(client.requests.read(request_id))


@request.command("watch")
def request_watch(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Follow a request; exit status 0 only if it succeeds."""
    with _client(url) as client:
        _follow(client, request_id)


def _follow(client: Client, request_id: str) -> None:
    from service.show import follow

    final = follow(client, request_id, out)
    if final["status"] != "succeeded":
        why = (final["error"] or {}).get("message")
        raise fail(f"the request ended as {final['status']}" + (f": {why}" if why else ""))
    out.print(f"checkpoint {final['checkpoint_id']}")


@request.command("cancel")
def request_cancel(request_id: str, url: Url = DEFAULT_URL) -> None:
    """Cancel a request that has not ended."""
    with _client(url) as client:
        _show(client.requests.cancel(request_id))


@checkpoint.command("download")
def checkpoint_download(
    checkpoint_id: str,
    directory: Path,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for receipts, once the files are there.")] = 30.0,
    url: Url = DEFAULT_URL,
) -> None:
    """Download a certified checkpoint and its certificate; every file is checked against the manifest.

    Exit status: 0 all of it, 4 all but receipts, which the ledger's signer still owes, 1 anything else. Run it again for them:
    files that are there already are not fetched twice.
    """
    with _client(url) as client:
        try:
            fetched = client.checkpoints.download(checkpoint_id, directory, patience_seconds=wait)
        except OSError as error:
            where = error.filename or directory
            raise fail(f"{where}: {error.strerror}; what has arrived is kept, run this again") from error
    out.print(f"{len(fetched.manifest['files'])} files in {directory}", soft_wrap=True, markup=False)
    if fetched.missing:
        names = ", ".join(fetched.missing)
        raise fail(f"complete, but receipts are still missing: {names}. The ledger is signed later; run this again", OWED)


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
        asked = {"model_id": model, "request_id": request_id, "action": action}
        rows = list(client.ledger.entries(**cast("EntryFilters", {k: v for k, v in asked.items() if v})))
    _show(rows) if as_json else _table(rows, ["seq", "at", "action", "outcome", "actor", "request_id", "model_id"])


@audit.command("export")
def audit_export(
    target: Annotated[Path | None, typer.Argument(help="Default: standard output.")] = None, url: Url = DEFAULT_URL
) -> None:
    """Export the whole ledger as JSON lines."""
    with _client(url) as client:
        if target is None:
            for line in client.ledger.export():
                print(line)
            return
        part = target.with_name(target.name + ".part")
        with part.open("w") as file:
            for line in client.ledger.export():
                file.write(line + "\n")
        part.replace(target)
