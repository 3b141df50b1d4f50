"""`expunge ledger …` and `expunge witness`: what an operator and a witness do with them, as processes."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.audit import notes
from service.audit.logsigner import LogSigner, open_folder
from service.config import Settings
from service.verifier.merkle import leaf_hash
from service.verifier.note import Key, Note, Policy
from tests.service.audit.logs import Tree

ROOT = Path(__file__).resolve().parents[2]
TREE = Tree([leaf_hash(bytes([n])) for n in range(9)])


def expunge(data: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EXPUNGE_")}
    environment = {**clean, "EXPUNGE_DATA_DIR": str(data), "COLUMNS": "300", **more}
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def signer(data: Path) -> LogSigner:
    settings = Settings(data_dir=data)
    return LogSigner(open_folder(settings.log_folder, settings.log_keys_file))


def test_a_rotation_from_the_first_key_to_the_second_alone(tmp_path: Path) -> None:
    assert "has not made the log's key yet" in expunge(tmp_path, "ledger", "policy").stderr
    (old,) = signer(tmp_path).about().keys
    told = expunge(tmp_path, "ledger", "policy", EXPUNGE_LEDGER_URL="https://us.example/audit")
    assert told.stdout.startswith(f"log {old} https://us.example/audit\n")
    assert Policy.parse(told.stdout).quorum == "none"
    made = expunge(tmp_path, "ledger", "rotate-key")
    new = Key.parse(made.stdout)
    assert Policy.parse(expunge(tmp_path, "ledger", "policy").stdout).logs == [old, new]
    assert len(Note.parse(signer(tmp_path).sign(0, 3, TREE.roots[3], [])).signatures) == 2
    refused = expunge(tmp_path, "ledger", "retire-key", "00000000")
    assert (refused.returncode, "no key with the id" in refused.stderr) == (1, True)
    assert expunge(tmp_path, "ledger", "retire-key", old.id.hex()).returncode == 0
    assert Policy.parse(expunge(tmp_path, "ledger", "policy").stdout).logs == [new]
    assert expunge(tmp_path, "ledger", "retire-key", new.id.hex()).returncode == 1


def test_a_signer_that_lost_its_record_adopts_a_checkpoint(tmp_path: Path) -> None:
    note = signer(tmp_path).sign(0, 3, TREE.roots[3], [])
    (tmp_path / "newest").write_text(note)
    (tmp_path / "keys" / "ledger" / "state.json").unlink()
    assert "no record of what it signed" in expunge(tmp_path, "ledger", "rotate-key").stderr
    (tmp_path / "else").write_text(note.replace("\n3\n", "\n4\n"))
    for wrong in ("else", "keys/ledger/lock"):
        done = expunge(tmp_path, "ledger", "adopt", str(tmp_path / wrong))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "goes on from 3 entries" in expunge(tmp_path, "ledger", "adopt", str(tmp_path / "newest")).stdout
    assert signer(tmp_path).about().size == 3


def test_a_folder_of_an_old_backup_learns_what_was_signed_since(tmp_path: Path) -> None:
    signer(tmp_path).sign(0, 3, TREE.roots[3], [])
    state = tmp_path / "keys" / "ledger" / "state.json"
    backup = state.read_bytes()
    (tmp_path / "newest").write_text(signer(tmp_path).sign(3, 8, TREE.roots[8], TREE.proof(3, 8)))
    state.write_bytes(backup)
    adopt = ("ledger", "adopt", str(tmp_path / "newest"))
    assert "/audit/proof/consistency?from=3&to=8" in expunge(tmp_path, *adopt).stderr
    hashes = [base64.b64encode(one).decode() for one in TREE.proof(3, 8)]
    (tmp_path / "proof").write_text(json.dumps({"from": 3, "to": 8, "hashes": hashes}))
    for wrong in ("newest", "keys/ledger/state.json"):
        done = expunge(tmp_path, *adopt, "--proof", str(tmp_path / wrong))
        assert (done.returncode, "is no answer of" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert "goes on from 8 entries" in expunge(tmp_path, *adopt, "--proof", str(tmp_path / "proof")).stdout
    assert signer(tmp_path).about().size == 8


def test_a_signer_whose_key_is_gone_does_not_start(tmp_path: Path) -> None:
    signer(tmp_path).sign(0, 3, TREE.roots[3], [])
    next((tmp_path / "keys" / "ledger").glob("*.pem")).unlink()
    for command, status in ((("signer",), 2), (("ledger", "rotate-key"), 1)):
        done = expunge(tmp_path, *command)
        told = " ".join(done.stderr.split())
        assert (done.returncode, "put the PEM back" in told, "Traceback" in told) == (status, True, False)


def test_an_origin_that_was_changed_stops_the_signer_in_one_sentence(tmp_path: Path) -> None:
    signer(tmp_path)
    done = expunge(tmp_path, "signer", EXPUNGE_LEDGER_ORIGIN="elsewhere.example")
    assert (done.returncode, "it cannot be changed" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize("settings", [{"EXPUNGE_LEDGER_TSA_URL": "http://tsa"}, {"EXPUNGE_LEDGER_TSA_CERTIFICATES": "x"}])
def test_time_stamps_that_nobody_could_check_are_not_asked_for(tmp_path: Path, settings: dict[str, str]) -> None:
    done = expunge(tmp_path, "ledger", "policy", **settings)
    assert (done.returncode, "go together" in done.stderr) == (3, True)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[tuple[str, Key]]:
    """Address and key of a witness that is a process of its own."""
    (vkey,) = signer(tmp_path / "log").about().keys
    arguments = ["witness", "--name", "w.example/1", "--log-vkey", str(vkey), "--port", "0"]
    arguments += ["--state", str(tmp_path / "w" / "state.json"), "--key", str(tmp_path / "w" / "key.pem")]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        key = Key.parse(process.stdout.readline().removeprefix("witness "))
        deadline = time.monotonic() + 20
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "log.txt").read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        again = subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        assert (again.returncode, "another witness is at work" in again.stderr) == (3, True)
        yield found[0], key
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_a_witness_is_a_process_anybody_can_run(witness: tuple[str, Key], tmp_path: Path) -> None:
    address, key = witness
    log = signer(tmp_path / "log")
    note = log.sign(0, 3, TREE.roots[3], [])
    answer = httpx2.post(f"{address}/add-checkpoint", content=notes.add_checkpoint(0, [], note).encode())
    (known,) = log.about().keys
    assert Policy.parse(f"log {known}\nwitness w {key}\nquorum w\n").checkpoint(note + answer.text).size == 3


@pytest.mark.parametrize("arguments", [[], ["--log-vkey", "x"], ["--log-vkey", str(Key("w", 4, bytes(32)))]])
def test_a_witness_of_nothing_does_not_start(tmp_path: Path, arguments: list[str]) -> None:
    common = ["--name", "w", "--state", str(tmp_path / "s"), "--key", str(tmp_path / "k")]
    done = expunge(tmp_path, "witness", *common, *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
