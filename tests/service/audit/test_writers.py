"""Writers that are processes, as the service and its workers are: no gap, no fork, and chains that hold."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from sqlalchemy import func, make_url, select

from service import db
from service.audit import archive
from service.config import get_settings
from service.tables import LedgerPrivate
from service.verifier.ledger import verify_ledger
from tests.service.audit import appending, logs
from tests.service.audit.appending import ROLLED_BACK, SHARED, own
from tests.service.audit.people import entries

WRITERS, APPENDS = 8, 200
KEPT = APPENDS - APPENDS // ROLLED_BACK


def test_eight_processes_leave_no_gap_and_a_ledger_that_verifies(database: str, tmp_path: Path) -> None:
    """8 x 200 appends, 20 of each rolled back: 1440 entries, 0 to 1439."""
    context = multiprocessing.get_context("forkserver")  # forked from a process that has imported all, and has no threads
    context.set_forkserver_preload([appending.__name__])
    with ProcessPoolExecutor(WRITERS, context) as pool:
        jobs = [pool.submit(appending.work, database, number, APPENDS) for number in range(WRITERS)]
        assert len({job.result(timeout=120) for job in jobs}) > 1
    found = entries()
    assert [e.seq for e in found] == list(range(WRITERS * KEPT))
    assert [e.at for e in found] == sorted(e.at for e in found)
    # the tenth that a writer rolls back is always of the same parity: from its own request, or from the shared one
    lost = APPENDS // ROLLED_BACK
    of_own = {own(k): APPENDS // 2 - (lost if k % 2 == 0 else 0) for k in range(WRITERS)}
    assert Counter(e.request_id for e in found) == of_own | {SHARED: WRITERS * KEPT - sum(of_own.values())}
    for request_id in (*of_own, SHARED):
        chain = [e for e in found if e.request_id == request_id]
        assert [e.request_ordinal for e in chain] == list(range(len(chain)))
        previous = [json.loads(e.leaf or b"")["request"]["prev"] for e in chain]
        assert previous == [None, *(e.leaf_hash.hex() for e in chain[:-1])]
    with db.reading() as session:
        assert session.scalars(select(func.count()).select_from(LedgerPrivate)).one() == len(found)
    assert logs.notary().round() is not None
    archive.write(tmp_path / "export", get_settings())
    (tmp_path / "policy").write_text((tmp_path / "export" / "policy.txt").read_text())
    file = make_url(database).database if "sqlite" in database else None
    report = verify_ledger(tmp_path / "export", tmp_path / "policy", database=Path(file) if file else None)
    assert report.valid, report
    assert (report.facts["entries"], report.facts["requests"]) == (WRITERS * KEPT + 1, WRITERS + 1)
