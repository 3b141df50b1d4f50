"""The log's signer: an extension or nothing, across restarts, and whoever holds the socket."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import sockets
from service.audit import logsigner
from service.audit.logsigner import About, Folder, KeyMissing, LogSigner, SocketLog, Stale, adopt, open_folder
from service.sockets import SignerUnavailable, SigningRefused
from service.verifier.merkle import leaf_hash
from service.verifier.note import Key, Note, Policy, Refused
from tests.service.audit import logs
from tests.service.audit.logs import Tree

LEAVES = [leaf_hash(bytes([n])) for n in range(40)]
TREE = Tree(LEAVES)
FORK = Tree([*LEAVES[:5], leaf_hash(b"another"), *LEAVES[6:]])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(tmp_path / "ledger", tmp_path / "public" / "ledger.vkeys", "log.example/l")


@pytest.fixture
def signer(folder: Folder) -> LogSigner:
    """One that has signed ten entries."""
    made = LogSigner(folder)
    made.sign(0, 10, TREE.roots[10], [])
    return made


def again(signer: LogSigner) -> LogSigner:
    """The same after a restart: all it has is its folder."""
    old = signer._folder
    return LogSigner(open_folder(old.path, old.public, "log.example/l"))


def believed(note: str, *keys: Key) -> bool:
    policy = Policy.parse("".join(f"log {key}\n" for key in keys) + "quorum none\n")
    try:
        policy.checkpoint(note)
    except Refused:
        return False
    return True


def test_an_extension_is_signed(signer: LogSigner) -> None:
    note = signer.sign(10, 40, TREE.roots[40], TREE.proof(10, 40))
    (key,) = signer.about().keys
    assert Policy.parse(f"log {key}\nquorum none\n").checkpoint(note).size == 40
    assert signer.about() == About("log.example/l", 40, (key,))
    assert believed(signer.sign(40, 40, TREE.roots[40], []), key)  # the same tree again, a day later


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(
    ("size", "root", "proof"),
    [
        pytest.param(9, TREE.roots[9], [], id="rolled back"),
        pytest.param(10, FORK.roots[10], [], id="rewritten at the same size"),
        pytest.param(40, FORK.roots[40], FORK.proof(10, 40), id="rewritten and grown"),
        pytest.param(40, FORK.roots[40], TREE.proof(10, 40), id="forked, with a true proof of another tree"),
        pytest.param(40, TREE.roots[40], [], id="unproven"),
        pytest.param(0, TREE.roots[0], [], id="emptied"),
    ],
)
def test_anything_else_is_refused(
    signer: LogSigner, caplog: pytest.LogCaptureFixture, restarted: bool, size: int, root: bytes, proof: list[bytes]
) -> None:
    asked = again(signer) if restarted else signer
    with pytest.raises(SigningRefused, match="10 entries were signed"):
        asked.sign(10, size, root, proof)
    assert "checkpoint.refused" in caplog.messages
    assert asked.about().size == 10


def test_a_proof_from_elsewhere_is_stale_and_signs_nothing(signer: LogSigner) -> None:
    with pytest.raises(Stale) as stale:
        signer.sign(0, 40, FORK.roots[40], [])
    assert stale.value.size == 10
    assert signer.about().size == 10


def test_the_record_is_on_the_disk_before_the_signature_is_out(signer: LogSigner, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(logsigner.durable, "replace", full)
    with pytest.raises(OSError, match="no space"):
        signer.sign(10, 40, TREE.roots[40], TREE.proof(10, 40))


def test_a_lost_record_stops_the_signer_until_somebody_says_what_was_signed(signer: LogSigner, tmp_path: Path) -> None:
    note = signer.sign(10, 20, TREE.roots[20], TREE.proof(10, 20))
    (tmp_path / "ledger" / "state.json").unlink()
    restarted = again(signer)
    for ask in (restarted.about, lambda: restarted.sign(0, 40, FORK.roots[40], [])):
        with pytest.raises(SigningRefused, match="expunge ledger adopt"):
            ask()
    adopt(restarted._folder, note)
    with pytest.raises(SigningRefused, match="another history"):
        restarted.sign(20, 40, FORK.roots[40], FORK.proof(20, 40))
    assert believed(restarted.sign(20, 40, TREE.roots[40], TREE.proof(20, 40)), *restarted.about().keys)


def test_only_a_checkpoint_of_our_own_is_adopted_and_never_over_a_record(signer: LogSigner, tmp_path: Path) -> None:
    stranger = LogSigner(open_folder(tmp_path / "other", tmp_path / "other.vkeys", "log.example/l"))
    theirs = stranger.sign(0, 40, FORK.roots[40], [])
    ours = signer.sign(10, 20, TREE.roots[20], TREE.proof(10, 20))
    signer.sign(20, 30, TREE.roots[30], TREE.proof(20, 30))
    with pytest.raises(Refused, match="knows what it signed"):
        adopt(signer._folder, ours)
    (tmp_path / "ledger" / "state.json").unlink()
    with pytest.raises(Refused, match="none of this signer's keys"):
        adopt(signer._folder, theirs)


def test_an_older_record_goes_forward_with_a_proof_and_never_otherwise(signer: LogSigner, tmp_path: Path) -> None:
    """The folder came back from a backup: what was signed since is learned from a checkpoint, and the fork stays refused."""
    state = tmp_path / "ledger" / "state.json"
    backup = state.read_bytes()
    newer = signer.sign(10, 30, TREE.roots[30], TREE.proof(10, 30))
    state.write_bytes(backup)
    folder = again(signer)._folder
    for proof in ([], TREE.proof(9, 30), TREE.proof(10, 29), FORK.proof(10, 30)):
        with pytest.raises(Refused, match=r"from=10&to=30"):
            adopt(folder, newer, proof)
    fork = logs.signed("log.example/l", folder.signing()[0], 30, FORK.roots[30])  # the key signed another history meanwhile
    with pytest.raises(Refused, match="nothing shows that this checkpoint extends"):
        adopt(folder, fork, FORK.proof(10, 30))
    other = logs.signed("log.example/other", folder.signing()[0], 30, TREE.roots[30])
    with pytest.raises(Refused):
        adopt(folder, other, TREE.proof(10, 30))
    assert LogSigner(folder).about().size == 10
    assert adopt(folder, newer, TREE.proof(10, 30)).size == 30
    assert adopt(folder, newer).size == 30  # again: the same one
    with pytest.raises(Refused, match="never goes back"):
        adopt(folder, logs.signed("log.example/l", folder.signing()[0], 10, TREE.roots[10]))
    with pytest.raises(SigningRefused, match="its end is missing"):
        LogSigner(folder).sign(30, 20, TREE.roots[20], [])


def test_a_key_that_is_gone_is_not_replaced_in_silence(
    signer: LogSigner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pem,) = signer._folder.path.glob("*.pem")
    kept = pem.read_bytes()
    pem.unlink()
    published = signer._folder.public.read_text()
    for ask in (signer.about, lambda: signer.sign(10, 40, TREE.roots[40], TREE.proof(10, 40))):  # while it runs
        with pytest.raises(SigningRefused, match="put the PEM back from its backup"):
            ask()
    with pytest.raises(KeyMissing, match=r"put the PEM back.*EXPUNGE_LEDGER_ORIGIN"):  # and when it starts
        again(signer)
    assert "log.key.missing" in caplog.messages
    assert not list(signer._folder.path.glob("*.pem"))
    assert signer._folder.public.read_text() == published
    pem.write_bytes(kept)
    assert again(signer).about().size == 10


def test_a_retired_key_alone_is_no_beginning(folder: Folder) -> None:
    with folder.locked():
        old = folder.publish("log.example/l")[0]
        folder.add_key("log.example/l")
        folder.retire_key("log.example/l", old.id.hex())
    next(folder.path.glob("*.pem")).unlink()
    with pytest.raises(KeyMissing):
        open_folder(folder.path, folder.public)


def test_rotation_overlaps_so_that_old_and_new_policies_accept(signer: LogSigner, folder: Folder) -> None:
    (old,) = signer.about().keys
    with folder.locked():
        new = folder.add_key("log.example/l")
    both = signer.sign(10, 20, TREE.roots[20], TREE.proof(10, 20))
    assert believed(both, old)
    assert believed(both, new)
    assert len(Note.parse(both).signatures) == 2
    with folder.locked():
        assert folder.retire_key("log.example/l", old.id.hex()) == old
        with pytest.raises(LookupError, match="only key"):
            folder.retire_key("log.example/l", new.id.hex())
        with pytest.raises(LookupError, match="no key with the id"):
            folder.retire_key("log.example/l", old.id.hex())
    alone = signer.sign(20, 30, TREE.roots[30], TREE.proof(20, 30))
    assert believed(alone, new)
    assert not believed(alone, old)
    assert signer.about().keys == (new,)
    assert folder.public.read_text() == f"{new}\n# retired {old}\n"
    assert [p.suffix for p in sorted(folder.path.glob("0*"))] == [".retired", ".pem"]
    assert b"PRIVATE" not in next(folder.path.glob("*.retired")).read_bytes()


def test_keys_are_private_and_made_once(signer: LogSigner, folder: Folder) -> None:
    (pem,) = folder.path.glob("*.pem")
    assert stat.S_IMODE(pem.stat().st_mode) == 0o600
    assert again(signer).about() == signer.about()


def test_the_origin_stays(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be changed"):
        open_folder(folder.path, folder.public, "log.example/other")
    with pytest.raises(ValueError, match="without spaces"):
        open_folder(tmp_path / "new", tmp_path / "new.vkeys", "log example")
    own = LogSigner(open_folder(tmp_path / "own", tmp_path / "own.vkeys")).about().origin
    assert own.startswith("expunge.local/ledger/")
    assert own != LogSigner(open_folder(tmp_path / "2", tmp_path / "2.vkeys")).about().origin


def test_a_first_start_that_was_cut_off_is_taken_up(tmp_path: Path) -> None:
    """The record comes first, and a key without one has signed: so this is a new log, and not a lost record."""
    folder = open_folder(tmp_path / "ledger", tmp_path / "l.vkeys", "log.example/l")
    next(folder.path.glob("*.pem")).unlink()
    assert LogSigner(open_folder(tmp_path / "ledger", tmp_path / "l.vkeys")).about().size == 0


@pytest.fixture
def socket_log(signer: LogSigner, tmp_path: Path) -> Iterator[SocketLog]:
    path, ready, stop = str(tmp_path / "s.sock"), threading.Event(), threading.Event()
    asked = {"ready": ready.set, "stop": stop}
    thread = threading.Thread(target=sockets.serve, args=(path, {"log": logsigner.desk(signer)}), kwargs=asked)
    thread.start()
    assert ready.wait(10)
    yield SocketLog(path)
    stop.set()
    thread.join(10)


def test_a_probe_that_asks_nothing_is_no_lost_connection(socket_log: SocketLog, caplog: pytest.LogCaptureFixture) -> None:
    """A health check comes every few seconds, and would fill the log."""
    for said in (b"", b"\0"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(socket_log._path)
            probe.sendall(said)
    socket_log.about()  # its turn comes after theirs began
    waited = threading.Event()
    for _ in range(100):
        if "connection.lost" in caplog.messages or waited.wait(0.1):
            break
    assert caplog.messages.count("connection.lost") == 1  # of the one that began a question and hung up


def test_the_socket_signs_and_refuses_like_the_signer_behind_it(socket_log: SocketLog, signer: LogSigner) -> None:
    about = socket_log.about()
    assert about == signer.about()
    with pytest.raises(Stale):
        socket_log.sign(9, 40, TREE.roots[40], [])
    with pytest.raises(SigningRefused, match="another history"):
        socket_log.sign(10, 40, FORK.roots[40], FORK.proof(10, 40))
    assert believed(socket_log.sign(10, 40, TREE.roots[40], TREE.proof(10, 40)), *about.keys)
    with pytest.raises(SigningRefused, match="no such desk"):
        sockets.ask(socket_log._path, {"statement": {}})
    with pytest.raises(SignerUnavailable):
        SocketLog(f"{socket_log._path}.not").about()
