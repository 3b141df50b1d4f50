"""Appends a second: alone in a transaction each, or in the transaction of a whole request; by one writer, or by several.

A writer is a process (`python -m tests.benchmarks.ledger.appends …`), as in production, where the service and its workers are
several. Each prepares, says so, and writes whenever it is told to; the rate counts from the first one's start to the last
one's end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from service import catalogue, db
from service.audit import ledger
from service.audit.leaves import LOCAL, ModelRegistered
from service.config import get_settings
from service.edge import writing
from service.requests import places, service
from service.requests.schemas import UnlearnRequestCreate
from service.tables import Dataset, Model, ModelVersion, new_id

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("append", "request", "post")
CLASSES, HELD_OUT = 10, 20
REQUESTS_A_MODEL = 8
"""One by one they wait for their turn on the model; each looks at those before it."""
FACT = ModelRegistered(family="ddpm", dataset_id="dset_" + "0" * 32, version_id="mver_" + "0" * 32, digest="0" * 64)


def settle(count: int) -> None:
    """A past of some entries, and the statistics that PostgreSQL's autovacuum makes of them within a minute: a plan made for an
    empty table reads all of it, and costs the more the longer the round lasts.
    """
    _many(_append, count)
    if db.get_engine().dialect.name == "postgresql":
        with db.get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")


def rates(folder: Path, counts: Mapping[str, int], writers: int, rounds: int) -> dict[str, float]:
    """Transactions a second of every kind in `counts`, medians of some rounds, on the database of this process.

    Args:
        folder: where writers may leave files.
        counts: of transactions of a kind in one round, by all writers together.
    """
    return {
        kind: statistics.median(_rounds(kind, max(1, count // writers), writers, rounds, folder))
        for kind, count in counts.items()
    }


def _rounds(kind: str, count: int, writers: int, rounds: int, folder: Path) -> Iterator[float]:
    command = [sys.executable, "-m", "tests.benchmarks.ledger.appends", kind, str(count), str(rounds), str(folder)]
    with ExitStack() as stack:
        made = []
        for number in range(writers):  # one after the other: what they prepare are transactions, too
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            made.append(stack.enter_context(subprocess.Popen([*command, str(number)], cwd=ROOT, **pipes)))
            _answer(made[-1], "ready")
        for _ in range(rounds):
            for one in made:
                print("go", file=one.stdin, flush=True)
            spans = [tuple(map(float, _answer(one, "done"))) for one in made]
            yield count * writers / (max(end for _, end in spans) - min(begin for begin, _ in spans))
        for one in made:
            one.stdin.close()
            one.wait(timeout=30)


def _answer(one: subprocess.Popen[str], word: str) -> list[str]:
    said = one.stdout.readline().split()
    if said[:1] != [word]:
        raise RuntimeError(f"a writer stopped with {one.wait(timeout=30)}; what it printed stands above")
    return said[1:]


# -------------------------------------------------------------------------------------------------------------- a writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("count", type=int)
    parser.add_argument("rounds", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("number", type=int)
    wanted = parser.parse_args()
    catalogue.get_catalogue()  # read once a process, and not while others wait for a lock
    warm = min(50, wanted.count)
    wishes = iter(()) if wanted.kind == "append" else _wishes(wanted, warm + wanted.rounds * wanted.count)
    work = {"append": _append, "request": partial(_request, wishes), "post": partial(_post, wishes)}[wanted.kind]
    _many(work, warm)  # connections, caches, imports
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.monotonic()
        _many(work, wanted.count)
        print("done", began, time.monotonic(), flush=True)


def _many(work: Callable[[], None], count: int) -> None:
    for _ in range(count):
        work()


def _append() -> None:
    with db.transaction() as session:
        ledger.append(session, FACT, actor=LOCAL)


def _request(wishes: Iterator[UnlearnRequestCreate]) -> None:
    """The one transaction of `POST /unlearn-requests`."""
    with writing() as session:
        _created(session, next(wishes), places.Known())


def _post(wishes: Iterator[UnlearnRequestCreate]) -> None:
    """All that `POST /unlearn-requests` does but HTTP: it looks at the dataset first."""
    wanted = next(wishes)
    known = places.look(wanted, None)
    assert known is not None
    assert known.items is not None, "without them nothing is held against the data"
    with writing() as session:
        _created(session, wanted, known)


def _created(session: db.OrmSession, wanted: UnlearnRequestCreate, known: places.Known) -> None:
    settings = get_settings()
    made = service.create(session, settings, wanted, None, known)
    assert made.told is not None, "each asks for something else"
    made.told.read.model_dump_json()


def _wishes(wanted: argparse.Namespace, count: int) -> Iterator[UnlearnRequestCreate]:
    """Each for another class of a model, a few to a model."""
    models = _models(wanted.folder / f"{wanted.number}.npz", -(-count // REQUESTS_A_MODEL), wanted.number)
    for n in range(count):
        body = {"model_id": models[n // REQUESTS_A_MODEL], "forget": {"classes": [n % REQUESTS_A_MODEL]}}
        yield UnlearnRequestCreate.model_validate({**body, "reason": "benchmark", "metadata": {"n": n}})


def _models(file: Path, count: int, number: int) -> list[str]:
    """Models as rows, of a dataset that is a real file; their own files are of no matter here."""
    labels = np.repeat(np.arange(CLASSES), HELD_OUT + 1)
    np.savez(file, images=np.zeros((len(labels), 8, 8), np.uint8), labels=labels)
    at, names = datetime.now(UTC), [f"class {k}" for k in range(CLASSES)]
    shared = {"created_at": at, "created_by": str(LOCAL), "class_names": names}
    files = [{"path": file.name, "size": file.stat().st_size, "sha256": "0" * 64}]
    ids = [new_id("mdl") for _ in range(count)]
    with db.transaction() as session:
        dataset = Dataset(
            id=new_id("dset"), name=str(number), format="npz", location=str(file.parent), files=files, digest=f"{number:064}",
            held_out_ids=[str(k) for k in range(len(labels)) if k % (HELD_OUT + 1)], **shared,
        )  # fmt: skip
        session.add(dataset)
        session.flush()
        session.add_all(
            Model(id=one, name=one, family="ddpm", dataset_id=dataset.id, current_version=1, **shared) for one in ids
        )
        session.flush()
        session.add_all(
            ModelVersion(
                id=new_id("mver"), model_id=one, number=1, location="/nowhere", files=[], digest="0" * 64,
                forgotten_classes=[], created_at=at,
            )
            for one in ids
        )  # fmt: skip
    return ids


if __name__ == "__main__":
    main()
