"""The verifier as a program: what it needs, how long it is, what it says, and that no byte of what it reads goes unread."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.verifier import entries
from service.verifier import ledger as verifier
from service.verifier.certificate import verify_directory
from service.verifier.ledger import tile, verify_ledger
from service.verifier.proofs import verify_dossier
from service.verifier.reading import GOOD, MAX_DOCUMENT_BYTES, TAMPERED, Tampered, Undecided, require_sums, unjson
from tests.benchmarks.ledger import history
from tests.service.certificates.doubles import FILES
from tests.service.verifier.dossiers import dossier
from tests.service.verifier.ledgers import Ledger, a_ledger, sums
from tests.service.verifier.published import Published, pem, publish_logged

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "service" / "verifier"
MAX_LINES = 1640
NEEDED = ("cryptography", "_cffi_backend", "cffi", "pycparser", "rfc8785")


@pytest.fixture(scope="module")
def ledger(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    file = tmp_path_factory.mktemp("ledger") / "ledger.db"
    shutil.copy(sqlite_template, file)
    return a_ledger(file)


@pytest.fixture(scope="module")
def published(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_logged(tmp_path_factory.mktemp("published"), ledger)


@pytest.fixture(scope="module")
def exported(ledger: Ledger, published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger.export(tmp_path_factory.mktemp("export") / "export")


def test_a_ledger_that_several_processes_look_at_is_read_as_strictly(tmp_path: Path) -> None:
    """Beyond so many entries others look ahead: what is odd is found at its place, and the first of two faults is named."""
    export = history.exported(tmp_path, size := 2 * verifier.AT_ONCE + 300)
    assert verify_ledger(export, tmp_path / "policy").facts["entries"] == size
    lines = (export / "entries.ndjson").read_bytes().splitlines(keepends=True)
    odd = verifier.AT_ONCE + 900
    lines[odd] = lines[odd].replace(b'"outcome":"succeeded"}', b'"outcome":"denied"}').replace(b'"mdl_0', b'"mdl_1', 2)
    (export / "entries.ndjson").write_bytes(b"".join(lines))
    (export / tile("entries", 16)).unlink()
    sums(export)
    report = verify_ledger(export, tmp_path / "policy")
    assert (report.status, report.reason.partition(":")[0]) == (TAMPERED, f"entry {odd}")


def test_a_list_of_sums_is_as_long_as_there_are_files(tmp_path: Path) -> None:
    """Every checkpoint adds a line: at one a minute, 32 MiB are full within the first year."""
    present = {f"checkpoints/{seq}-0.note": f"{seq:064x}" for seq in range(1_000_000, 1_370_000)}
    file = tmp_path / "SHA256SUMS"
    file.write_text("".join(f"{digest}  {name}\n" for name, digest in present.items()))
    assert file.stat().st_size > MAX_DOCUMENT_BYTES
    require_sums(file, present)
    name, digest = present.popitem()
    for wrong, reason in (
        ({}, "is missing"),
        ({name: digest[::-1]}, "was changed"),
        ({name: digest, "x": digest}, "is not named"),
    ):
        with pytest.raises(Tampered, match=reason):
            require_sums(file, present | wrong)
    with pytest.raises(Undecided):
        require_sums(None, present)


def test_a_list_of_sums_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    file = tmp_path / "SHA256SUMS"
    with file.open("wb") as huge:
        huge.truncate(1 << 40)  # a hole: a line of a tebibyte
    with pytest.raises(Tampered, match="SHA256SUMS is not readable"):
        require_sums(file, {})
    line = f"{'0' * 64}  x%d\n"
    with file.open("w") as many:
        many.writelines(line % n for n in range(5000))
    with pytest.raises(Tampered, match="x0 is missing"):
        require_sums(file, {})


def test_the_verifier_can_be_read_in_one_sitting() -> None:
    files = list(PACKAGE.glob("*.py"))
    assert sum(len(file.read_text().splitlines()) for file in files) < MAX_LINES
    assert all(len(file.read_text().splitlines()) < 270 for file in files)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the verifier and what it may import, and nothing else."""
    room = tmp_path_factory.mktemp("alone")
    shutil.copytree(PACKAGE, room / "service" / "verifier", ignore=shutil.ignore_patterns("__pycache__"))
    (room / "service" / "__init__.py").write_text("")
    for path in Path(sysconfig.get_path("platlib")).iterdir():
        if path.name.split(".")[0] in NEEDED:
            (room / path.name).symlink_to(path)
    return room


def run(room: Path, *arguments: str | Path) -> dict[str, Any]:
    """In an interpreter that sees the standard library and that folder: no site-packages, no environment variables."""
    code = (
        f"import sys; sys.path.append({str(room)!r}); import runpy; runpy.run_module('service.verifier', run_name='__main__')"
    )
    command = [sys.executable, "-I", "-S", "-c", code, *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=room, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 2), done.stderr
    return dict(json.loads(done.stdout))


def test_the_program_needs_two_packages(
    alone: Path, ledger: Ledger, published: Published, exported: Path, tmp_path: Path
) -> None:
    for missing in ("sqlalchemy", "pydantic", "torch", "service.audit"):
        probe = f"import sys; sys.path.append({str(alone)!r}); import {missing}"
        assert subprocess.run([sys.executable, "-I", "-S", "-c", probe], capture_output=True, check=False).returncode == 1
    (tmp_path / "r.tlog-proof").write_text(ledger.proof(20))
    zipped = dossier(ledger, "ureq_09", tmp_path / "d.zip")
    policy = ["--policy", published.policy]
    for arguments in (
        ["ledger", exported, *policy, "--db", ledger.file, "--checkpoint", exported / "checkpoint", "--witness-size", "306"],
        ["certificate", published.folder, "--key", published.key_file, *policy],
        [published.folder, "--key", published.key_file],
        ["receipt", tmp_path / "r.tlog-proof", *policy],
        ["dossier", zipped, *policy],
    ):
        answer = run(alone, *arguments)
        assert (answer["valid"], answer["status"]) == (True, GOOD), answer
    assert run(alone, "ledger", tmp_path / "nowhere", *policy)["status"] == 2
    assert run(alone, "receipt", published.key_file, *policy)["status"] == 1


def test_a_line_in_other_bytes_is_read_and_held_against_the_text(exported: Path, published: Published, tmp_path: Path) -> None:
    """Somebody else may have written it: it may say the same, and nothing else."""
    home = Path(shutil.copytree(exported, tmp_path / "export"))
    lines = (home / "entries.ndjson").read_text().splitlines()
    assert published.policy is not None
    for change, status in (({}, GOOD), ({"actor": "user:other"}, TAMPERED), ({"outcome": None}, TAMPERED)):
        other = json.dumps(dict(reversed(json.loads(lines[5]).items())) | change)
        (home / "entries.ndjson").write_text("\n".join([*lines[:5], other, *lines[6:], ""]))
        sums(home)
        report = verify_ledger(home, published.policy)
        assert report.status == status, report.reason
        assert status == GOOD or report.reason.startswith("entry 5: its ")


def test_lines_as_the_service_writes_them_are_compared_and_not_read(
    exported: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a million entries take a third longer, and nobody notices. Read are private rows, the redacted entry's line and
    the manifest."""
    read = []
    monkeypatch.setattr(verifier, "unjson", lambda data: read.append(data) or unjson(data))
    assert published.policy is not None
    assert verify_ledger(exported, published.policy).status == GOOD
    rows = (exported / "private.ndjson").read_bytes().splitlines()
    assert len(read) == len(rows) + 1 + 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["ledger"], ["ledger", "x"], ["receipt", "x"], ["dossier", "x"], ["certificate", "x"], ["x", "--key"],
     ["ledger", "x", "--policy", "p", "--witness-size", "many"], ["x", "--key", "y", "--nonsense"]],
)  # fmt: skip
def test_wrong_usage_is_status_3(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "service.verifier", *arguments]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 3


def test_the_command_line_of_the_service_passes_every_kind_on(ledger: Ledger, published: Published, exported: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "verify", "ledger", str(exported), "--policy", str(published.policy)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "VALID: every hash, root, column and row follows from the entries",
    )


def test_a_model_signature_of_the_stock_tool_is_taken(published: Published, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from model_signing import hashing, signing

    private = published.key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    (tmp_path / "key").write_bytes(private)
    home = shutil.copytree(published.folder, tmp_path / "checkpoint")
    (home / "model.sig").unlink()
    config = hashing.Config().set_ignored_paths(paths=[home / "UNLEARNING", home / "model.sig"], ignore_git_paths=False)
    signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key").set_hashing_config(config).sign(
        home, home / "model.sig"
    )
    report = verify_directory(home, published.key_file, published.policy)
    assert report.valid, report.reason
    assert pem(published.key) == published.key_file.read_bytes()


# ------------------------------------------------------------------------------------------------------- canonical texts

TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=4), TEXTS, max_size=4))
@example({"\x7f": '\x1f\b\f\n\r\t"\\/', "é": 1, "\U00010000": 2, "\uffff": 3})
def test_the_fast_check_takes_what_rfc8785_writes_and_nothing_else(value: dict[str, Any]) -> None:
    try:
        text = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return
    assert entries.opened(text) == value
    for other in (json.dumps(value), json.dumps(value, sort_keys=True, separators=(",", ":"))):
        if other.encode() != text:
            with pytest.raises(Tampered):
                entries.opened(other.encode())


@pytest.mark.parametrize("text", ['{"a":1.0}', '{"a":1e3}', '{"a":-0}', '{"a":9007199254740992}', '{"a":NaN}', '{"a":1,"a":1}'])
def test_what_rfc8785_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(Tampered):
        entries.opened(text.encode())


def test_tiles_are_where_the_specification_puts_them() -> None:
    assert tile(0, 1234067) == "tile/0/x001/x234/067"
    assert tile("entries", 0, 7) == "tile/entries/000.p/7"
    assert tile(1, 999) == "tile/1/999"
    assert tile(2, 1000, 3) == "tile/2/x001/000.p/3"


# ------------------------------------------------------------------------------------------------------- no byte unread


def flipped(data: bytes, where: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[where] ^= 1 << bit
    return bytes(changed)


SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(data=st.data())
def test_no_byte_of_a_published_folder_may_change(published: Published, data: st.DataObject) -> None:
    """But in what the verifier says that it never trusts."""
    names = sorted(p for p in published.folder.rglob("*") if p.is_file() and p.name != "policy.txt")
    assert len(names) == len(FILES) + 6
    path = data.draw(st.sampled_from(names))
    before = path.read_bytes()
    changed = flipped(before, data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7)))
    path.write_bytes(changed)
    try:
        report = verify_directory(published.folder, published.key_file, published.policy)
        assert report.valid == (path.suffix in (".json", ".sig") and same_json(before, changed)), report
    finally:
        path.write_bytes(before)


def same_json(before: bytes, after: bytes) -> bool:
    """A flip that changed white space and nothing else."""
    try:
        return bool(json.loads(before) == json.loads(after))
    except ValueError:
        return False


@SLOW
@given(data=st.data())
def test_no_byte_of_an_export_may_change(published: Published, exported: Path, data: st.DataObject) -> None:
    names = sorted(p for p in exported.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(names))
    before = path.read_bytes()
    path.write_bytes(flipped(before, data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7))))
    try:
        assert not verify_ledger(exported, published.policy).valid
    finally:
        path.write_bytes(before)


LEDGER = {
    "ledger_entry": "*", "ledger_node": "*", "ledger_head": "*", "ledger_checkpoint": "log_id, size, note",
    "ledger_private": "log_id, seq, kek_id, salt, dek_wrapped, ciphertext",
}  # fmt: skip
"""What the ledger says. For how long private rows are kept, and when a checkpoint came in, are the operator's notes."""


def content(file: Path) -> dict[str, list[Any]]:
    with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True) as connection:
        return {
            table: connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3").fetchall()
            for table, columns in LEDGER.items()
        }


@SLOW
@given(data=st.data())
def test_no_byte_of_the_database_may_change_what_it_says(
    ledger: Ledger, published: Published, exported: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """A flip that is not refused fell on a byte that means nothing to the ledger: it reads the same."""
    before = ledger.file.read_bytes()
    where = data.draw(st.integers(0, len(before) - 1))
    file = tmp_path / "flipped.db"
    file.write_bytes(flipped(before, where, data.draw(st.integers(0, 7))))
    if verify_ledger(exported, published.policy, database=file).valid:
        assert content(file) == content(ledger.file)


@pytest.fixture(scope="module")
def zipped(ledger: Ledger, published: Published, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return dossier(ledger, "ureq_09", tmp_path_factory.mktemp("dossier") / "d.zip").read_bytes()


@SLOW
@given(data=st.data())
def test_no_byte_of_a_dossier_may_change_what_it_says(
    published: Published, zipped: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    """A zip file has dates and attributes that mean nothing."""
    path = tmp_path / "d.zip"
    path.write_bytes(flipped(zipped, data.draw(st.integers(0, len(zipped) - 1)), data.draw(st.integers(0, 7))))
    if verify_dossier(path, published.policy).valid:
        with zipfile.ZipFile(path) as changed, zipfile.ZipFile(io.BytesIO(zipped)) as original:
            assert {n: changed.read(n) for n in changed.namelist()} == {n: original.read(n) for n in original.namelist()}
