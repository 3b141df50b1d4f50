"""Who owns the ledger's file may do anything to it, and it is seen: in the file itself, and in any export made from it.

Every attack is made on a ledger that the service's own code wrote, all triggers dropped. Two cannot be seen in files alone;
they are here too, with what does show them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.audit import leaves
from service.audit.export import Stored
from service.verifier.merkle import leaf_hash
from service.verifier.reading import UNDECIDED
from tests.attacks.conftest import Field, refused, unseen
from tests.service.verifier.ledgers import ORIGIN, Row, Signers, columns, sums

pytestmark = pytest.mark.attack
Change = Callable[[Field], None]


def edited(row: Row, **changes: Any) -> Row:
    """An entry with another text, and all that follows from the text."""
    leaf = leaves.canonical(json.loads(row["leaf"]) | changes)
    return row | {"leaf": leaf, "leaf_hash": leaf_hash(leaf)} | columns(leaf)


def leaf(field: Field, seq: int, data: bytes, *, rehash: bool = False) -> None:
    with field.ledger.opened() as connection:
        connection.execute("UPDATE ledger_entry SET leaf = ? WHERE seq = ?", (data, seq))
        if rehash:
            connection.execute("UPDATE ledger_entry SET leaf_hash = ? WHERE seq = ?", (leaf_hash(data), seq))


def text_of(field: Field, seq: int) -> bytes:
    return bytes(field.ledger.rows()[seq]["leaf"])


def test_the_untouched_ledger_is_good(field: Field) -> None:
    unseen(field.verify(db=True, saved=True, witness_size=306))
    unseen(field.verify(field.hostile()))


# -------------------------------------------------------------------------------------------- changes of single values


def edit_text(field: Field) -> None:
    leaf(field, 20, text_of(field, 20).replace(b"ureq_", b"ureQ_"))


def edit_text_and_hash(field: Field) -> None:
    leaf(field, 0, text_of(field, 0).replace(b'"datasetId":"d"', b'"datasetId":"e"'), rehash=True)


def edit_column(column: str, value: str) -> Change:
    return lambda field: field.ledger.sql(f"UPDATE ledger_entry SET {column} = {value} WHERE seq = 20")


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        pytest.param(edit_text, "entry 20: its text is not the one of its hash", id="text"),
        pytest.param(edit_text_and_hash, "checkpoints/103-0.note: its root is not that of the first 103", id="text and hash"),
        *(
            pytest.param(edit_column(column, value), f"entry 20: its {column} is not what its text says", id=column)
            for column, value in {
                "action": "'run.lost'",
                "outcome": "'failed'",
                "tenant": "'other'",
                "actor": "'user:x'",
                "request_id": "'ureq_x'",
                "model_id": "NULL",
            }.items()
        ),
        pytest.param(edit_column("request_ordinal", "77"), "entry 20: its request_ordinal is not", id="ordinal"),
        pytest.param(edit_column("at", "'2030-01-01 00:00:00.000000'"), "entry 20: its at is not", id="at"),
    ],
)
def test_an_edit_is_seen_in_the_file_and_in_an_export_of_it(field: Field, attack: Change, named: str) -> None:
    attack(field)
    # the file's first mistake may be the hash in the tree; the export's is in what it says of the entry
    report = field.verify(db=True)
    refused(report, "ledger.db: ")
    if attack is not edit_text_and_hash:
        refused(report, named)
    refused(field.verify(field.hostile()), named)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE ledger_node SET hash = zeroblob(32) WHERE level = 3 AND idx = 5", "the stored subtree 5 of level 3"),
        ("UPDATE ledger_node SET hash = zeroblob(32) WHERE level = 0 AND idx = 9", "the stored subtree 9 of level 0"),
        ("DELETE FROM ledger_node WHERE level = 1 AND idx = 2", "the stored subtree 2 of level 1"),
        ("INSERT INTO ledger_node VALUES (1, 30, 0, zeroblob(32))", "stored subtrees beyond"),
        ("UPDATE ledger_head SET size = 300", "the head is not that of its entries"),
        ("UPDATE ledger_head SET last_at = '2020-01-01 00:00:00.000000'", "the head is not that of its entries"),
        ("UPDATE ledger_head SET frontier = zeroblob(96)", "the head is not that of its entries"),
        ("DELETE FROM ledger_head", "the head is not that of its entries"),
    ],
)
def test_the_tree_and_the_head_beside_the_entries_are_held_against_them(field: Field, statement: str, named: str) -> None:
    field.ledger.sql(statement)
    refused(field.verify(db=True), named)


# ---------------------------------------------------------------------------- changes of the sequence, all else repaired


def delete(rows: list[Row]) -> list[Row]:
    return rows[:60] + rows[61:]


def swap_events(rows: list[Row]) -> list[Row]:
    first, second = (json.loads(row["leaf"])["at"] for row in rows[57:59])
    rows[57], rows[58] = edited(rows[58], at=first), edited(rows[57], at=second)
    return rows


def swap_unrelated(rows: list[Row]) -> list[Row]:
    rows[303] = edited(rows[303], at=json.loads(rows[305]["leaf"])["at"])
    rows[303], rows[305] = rows[305], rows[303]
    return rows


def backdate(rows: list[Row]) -> list[Row]:
    made = edited(rows[50], request=None, subjectCommitment=None, public={"note": "always been here"})
    return [*rows[:51], made, *rows[51:]]


def rewrite_text(rows: list[Row]) -> list[Row]:
    return [edited(row, outcome="failed") if row["seq"] == 20 else row for row in rows]


SEQUENCES = [delete, swap_events, swap_unrelated, backdate, rewrite_text]


@pytest.mark.parametrize("change", SEQUENCES)
def test_a_rewritten_sequence_is_seen(field: Field, change: Callable[[list[Row]], list[Row]]) -> None:
    field.ledger.rewrite(change, rechain=True)
    refused(field.verify(db=True), "ledger.db: ")
    report = field.verify(field.hostile())
    refused(report, "")
    assert "its root is not that of the first" in report.reason or "knows of" in report.reason or "entry" in report.reason


def test_a_deleted_row_is_named(field: Field) -> None:
    field.ledger.sql("DELETE FROM ledger_entry WHERE seq = 60")
    refused(field.verify(db=True), "ledger.db: entry 60 is missing")


# -------------------------------------------------------------------------------------------------------- the end cut off


def cut(field: Field, size: int) -> None:
    """Drop the newest entries, and what they did with them: redaction and shred undone."""
    kept = field.ledger.rows()[:size]
    restored = dict(original_texts)
    for row in kept:
        if row["leaf"] is None:
            row |= {"leaf": restored[row["seq"]], "redacted_by": None}
    field.ledger.rewrite(lambda rows: kept)


original_texts: dict[int, bytes] = {}


@pytest.fixture(autouse=True)
def _what_was_redacted(original: Any) -> None:
    """Whoever is to redact a text has had it."""
    rows = original.rows()
    gone = next(row for row in rows if row["leaf"] is None)
    like = json.loads(rows[gone["seq"] + 6]["leaf"])  # the same event of the next request
    like["request"] = {"id": gone["request_id"], "ordinal": 1, "prev": rows[gone["seq"] - 1]["leaf_hash"].hex()}
    like["at"] = gone["at"].replace(" ", "T") + "Z"
    original_texts[gone["seq"]] = leaves.canonical(like)
    assert leaf_hash(original_texts[gone["seq"]]) == gone["leaf_hash"]


def test_an_old_backup_is_too_short_for_the_newest_checkpoint(field: Field) -> None:
    cut(field, 295)
    refused(field.verify(db=True), "ledger.db: checkpoint knows of 306 entries and here are 295: the end was cut off")
    report = field.verify(field.hostile())
    assert not report.valid


def test_a_ledger_cut_below_the_kept_checkpoint_is_seen(field: Field) -> None:
    cut(field, 103)
    export = field.hostile(hide=2)
    unseen(field.verify(export))
    refused(field.verify(export, saved=True), "saved knows of 295 entries and here are 103")


def test_limit_cut_above_the_kept_checkpoint_the_newest_hidden(field: Field) -> None:
    """Stated limit: nothing that the auditor holds has seen the last entries. A witness has, and so has any later receipt."""
    cut(field, 295)
    export = field.hostile(hide=1)
    unseen(field.verify(export, saved=True))
    refused(field.verify(export, saved=True, witness_size=306), "the witness knows of 306 entries and here are 295")
    field.saved.write_text(field.ledger.stored[2].note)  # it came with a requester's receipt
    refused(field.verify(export, saved=True), "saved knows of 306 entries and here are 295")


# ------------------------------------------------------------------------------------------ the log's key in wrong hands


def erase_a_request(field: Field, *, witnesses: int) -> None:
    """Everything that was ever said of one request is gone, everything else repaired, every checkpoint signed again."""
    field.ledger.rewrite(lambda rows: [row for row in rows if row["request_id"] != "ureq_20"])
    signed = []
    for one in field.ledger.stored:
        size = one.size - (6 if one.size > 103 else 0)
        tree = field.ledger.tree(size)
        signed.append(Stored(size, field.ledger.signers.note(size, tree.root(), witnesses=witnesses)))
    field.ledger.stored = signed


@pytest.mark.parametrize("witnesses", [0, 1])
def test_history_signed_anew_without_enough_witnesses_is_seen(field: Field, witnesses: int) -> None:
    erase_a_request(field, witnesses=witnesses)
    refused(field.verify(field.hostile()), "checkpoint: too few witnesses have seen this checkpoint")


def test_limit_history_signed_anew_where_nobody_else_ever_looked(field: Field) -> None:
    """Stated limit: log key stolen, quorum none, no checkpoint kept. One kept checkpoint shows it; so does a witness that
    saw more than there is now."""
    erase_a_request(field, witnesses=0)
    field.policy.write_text(field.ledger.signers.policy("quorum none"))
    export = field.hostile()
    unseen(field.verify(export))
    unseen(field.verify(export, db=True))
    refused(field.verify(export, saved=True), "saved: its root is not that of the first 295 entries")
    refused(field.verify(export, witness_size=306), "the witness knows of 306 entries and here are 300")


def test_two_histories_of_one_size_are_seen_by_who_has_both_checkpoints(field: Field) -> None:
    other = field.ledger.signers.note(295, b"\7" * 32)
    field.saved.write_text(other)
    refused(field.verify(saved=True), "its root is not that of the first 295 entries")


def resigned(field: Field, change: Callable[[list[Row]], list[Row]], *, rechain: bool = False) -> None:
    """A lying operator with every key, from the beginning: no root gives him away, only what he wrote."""
    field.ledger.rewrite(change, rechain=rechain)
    tree = field.ledger.tree()
    field.ledger.stored = [Stored(tree.size, field.ledger.signers.note(tree.size, tree.root()))]


def clock_back(rows: list[Row]) -> list[Row]:
    return [edited(row, at="2020-01-01T00:00:00.000000Z") if row["seq"] == 302 else row for row in rows]


def no_time(rows: list[Row]) -> list[Row]:
    return [edited(row, at="2099-01-01T00:00:00Z") if row["seq"] == 305 else row for row in rows]


def event_left_out(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["seq"] != 57]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (clock_back, "entry 302: its time is none, or lies before"),
        (event_left_out, "entry 57: it does not follow the entry before it of ureq_09, as number 2 of that request"),
        (swap_events, "entry 57: it does not follow the entry before it of ureq_09"),
    ],
)
def test_what_no_honest_log_signs_is_refused_though_it_is_signed(
    field: Field, change: Callable[[list[Row]], list[Row]], named: str
) -> None:
    resigned(field, change)
    refused(field.verify(field.hostile()), named)


def test_a_time_in_another_form_is_refused(field: Field) -> None:
    resigned(field, no_time)
    refused(field.verify(db=True), "ledger.db: entry 305: its time is none")


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: text.replace(b'"at":', b'"at": '),
        lambda text: text[:-1] + b',"zz":1.50}',
        lambda text: text[:-1] + b',"zz":9007199254740992}',
        lambda text: text[:-1] + b',"v":1}',
        lambda text: text.replace(b"user", b"us\\u0065r"),
        lambda text: text + b"\n",
        lambda text: b"[]",
        lambda text: b"\xff",
        lambda text: text.replace(b'"v":1', b'"v":NaN'),
    ],
)
def test_a_text_that_has_a_second_form_is_refused(field: Field, spoilt: Callable[[bytes], bytes]) -> None:
    leaf(field, 305, spoilt(text_of(field, 305)), rehash=True)
    refused(field.verify(db=True), "ledger.db: entry 305")


# ----------------------------------------------------------------------------------------------- signatures and policies


def test_a_checkpoint_that_was_edited_or_signed_by_another_key_is_refused(field: Field) -> None:
    note = (field.export / "checkpoint").read_text()
    for wrong in (note.replace("\n306\n", "\n305\n"), Signers(witnesses=field.ledger.signers.witnesses).note(306, b"\1" * 32)):
        (field.export / "checkpoint").write_text(wrong)
        sums(field.export)
        refused(field.verify(), "checkpoint: ")


def test_another_key_under_the_logs_name_is_refused(field: Field) -> None:
    stranger = Signers(log=Ed25519PrivateKey.generate(), witnesses=field.ledger.signers.witnesses)
    tree = field.ledger.tree()
    field.ledger.stored = [Stored(tree.size, stranger.note(tree.size, tree.root()))]
    refused(field.verify(field.hostile()), f"no key of the log {ORIGIN} that the policy knows")


def test_fewer_witnesses_than_the_quorum_are_too_few(field: Field) -> None:
    tree = field.ledger.tree()
    field.ledger.stored.append(Stored(tree.size, field.ledger.signers.note(tree.size, tree.root(), witnesses=1)))
    (field.export / "checkpoint").write_text(field.ledger.stored[-1].note)
    sums(field.export)
    refused(field.verify(), "checkpoint: too few witnesses have seen this checkpoint: W0")


def test_the_policy_in_the_export_decides_nothing(field: Field) -> None:
    stranger = Signers()
    (field.export / "policy.txt").write_text(stranger.policy("quorum none"))
    tree = field.ledger.tree()
    (field.export / "checkpoint").write_text(stranger.note(306, tree.root()))
    sums(field.export)
    refused(field.verify(), "checkpoint: no key of the log")


# ------------------------------------------------------------------------------------- keys that the policy no longer has

OLD_ORIGIN = "log.example/2025"


def superseded(field: Field, origin: str = ORIGIN) -> Signers:
    """Whose key an entry names and the policy does not: it was retired, or is that of the origin before this one."""
    old = Signers(witnesses=field.ledger.signers.witnesses)
    field.ledger.append((leaves.KeyAdded(vkey=str(old.key(origin))), {}))
    field.ledger.sign()
    return old


def bring(field: Field, size: int, note: str) -> None:
    """Into the stored checkpoints: of the file, and so of any export."""
    field.ledger.stored.append(Stored(size, note))
    insert = "INSERT INTO ledger_checkpoint (log_id, size, created_at, note) VALUES (1, ?, '2026-11-21 12:00:00.000000', ?)"
    with field.ledger.opened() as connection:
        connection.execute(insert, (size, note))


@pytest.mark.parametrize("origin", [ORIGIN, OLD_ORIGIN])
def test_a_checkpoint_by_a_key_that_the_ledger_names_is_held_against_it_and_counted_apart(field: Field, origin: str) -> None:
    old, root = superseded(field, origin), field.ledger.tree(103).root()
    bring(field, 103, old.note(103, root, origin=origin))
    export = field.hostile()
    for db, apart in ((False, 1), (True, 2)):  # the file's are counted, too
        report = field.verify(export, db=db)
        unseen(report)
        assert (report.facts["checkpoints"], report.facts["checkpoints_by_retired_keys"]) == (1 + 4, apart)
    field.policy.write_text(f"log {old.key(origin)}\n" + field.policy.read_text())
    report = field.verify(export)
    unseen(report)
    assert (report.facts["checkpoints"], report.facts["checkpoints_by_retired_keys"]) == (1 + 5, 0)


@pytest.mark.parametrize(
    ("size", "change", "named"),
    [
        pytest.param(103, lambda old, root: Signers().note(103, root), f"no key of the log {ORIGIN} that", id="no entry names"),
        pytest.param(103, lambda old, root: old.note(103, root, origin=OLD_ORIGIN), f"no key of the log {OLD_ORIGIN} that",
                     id="key under another name"),
        pytest.param(103, lambda old, root: old.note(103, b"\7" * 32), "its root is not that of the first 103", id="root"),
        pytest.param(0, lambda old, root: old.note(0, b"\7" * 32), "its root is not that of none", id="root of none"),
        pytest.param(103, lambda old, root: old.note(104, root).replace("\n104\n", "\n103\n"), "does not hold", id="signature"),
        pytest.param(102, lambda old, root: old.note(103, root), ("is not of 102 entries", "is of another size"), id="size"),
        pytest.param(999, lambda old, root: old.note(999, root), "it knows of 999 entries and here are 307", id="end"),
    ],
)  # fmt: skip
def test_a_checkpoint_by_a_retired_key_does_not_hold_by_itself(
    field: Field, size: int, change: Callable[[Signers, bytes], str], named: str | tuple[str, str]
) -> None:
    in_file, in_export = (named, named) if isinstance(named, str) else named
    old = superseded(field)
    honest = field.hostile()
    bring(field, size, change(old, field.ledger.tree(103).root()))
    report = field.verify(honest, db=True)
    refused(report, in_file)
    assert report.reason.startswith("ledger.db: the checkpoint stored at 2026-11-21 12:00:00.000000")
    forged = field.ledger.forged_export(field.folder / "forged", field.ledger.stored[:4])
    (forged / f"checkpoints/{size}-9.note").write_text(field.ledger.stored[4].note)
    sums(forged)
    report = field.verify(forged)
    refused(report, in_export)
    assert report.reason.startswith(f"checkpoints/{size}-9.note")


def test_the_newest_checkpoint_and_one_that_was_kept_must_be_believed_by_the_policy_itself(field: Field) -> None:
    old, tree = superseded(field), field.ledger.tree()
    field.saved.write_text(old.note(103, field.ledger.tree(103).root()))
    refused(field.verify(field.hostile(), saved=True), f"saved: no key of the log {ORIGIN} that the policy knows")
    field.ledger.stored = [Stored(tree.size, old.note(tree.size, tree.root()))]
    refused(field.verify(field.hostile()), f"checkpoint: no key of the log {ORIGIN} that the policy knows")


def test_a_kept_checkpoint_of_the_origin_before_shows_what_was_lost(field: Field) -> None:
    old, root = superseded(field, OLD_ORIGIN), field.ledger.tree(295).root()
    field.policy.write_text(f"log {old.key(OLD_ORIGIN)}\n" + field.policy.read_text())
    export = field.hostile()
    for size, kept, named in (
        (295, root, ""),
        (295, b"\7" * 32, "saved: its root is not that of the first 295 entries"),
        (999, root, "saved knows of 999 entries and here are 307"),
    ):
        field.saved.write_text(old.note(size, kept, origin=OLD_ORIGIN))
        report = field.verify(export, saved=True)
        refused(report, named) if named else unseen(report)


# --------------------------------------------------------------------------------------------- redactions, private parts


def test_a_silent_shred_is_named(field: Field) -> None:
    seq = field.ledger.seq("unlearning.request.received", 8)
    gone = "salt = NULL, dek_wrapped = NULL, ciphertext = NULL"
    for change in (gone, f"{gone}, shredded_at = '2026-11-21 12:00:00.000000'"):
        field.ledger.sql(f"UPDATE ledger_private SET {change} WHERE seq = {seq}")
        refused(field.verify(db=True), f"ledger.db: private row {seq} was shredded silently")
        refused(field.verify(field.hostile()), f"private row {seq} was shredded silently")


def test_a_shred_that_did_not_happen_is_named(field: Field) -> None:
    kept = field.ledger.backup[25]
    with field.ledger.opened() as connection:
        change = "UPDATE ledger_private SET salt = ?, dek_wrapped = ?, ciphertext = ?, shredded_at = NULL WHERE seq = 25"
        connection.execute(change, (kept["salt"], kept["dek_wrapped"], kept["ciphertext"]))
    refused(field.verify(db=True), "private row 25 is said to be shredded, and is not")
    field.ledger.sql("UPDATE ledger_private SET shredded_at = '2026-11-21 12:00:00.000000' WHERE seq = 25")
    refused(field.verify(db=True), "private row 25 is said to be shredded, and is not")


def test_a_private_row_cannot_vanish_appear_or_move(field: Field) -> None:
    seq = field.ledger.seq("unlearning.request.received", 8)
    field.ledger.sql(f"UPDATE ledger_private SET seq = {seq + 1} WHERE seq = {seq}")
    refused(field.verify(db=True), f"entry {seq}: its private row is missing")
    field.ledger.sql(f"UPDATE ledger_private SET seq = {seq} WHERE seq = {seq + 1}")
    field.ledger.sql("INSERT INTO ledger_private (log_id, seq, salt) VALUES (1, 999, zeroblob(32))")
    refused(field.verify(db=True), "private row 999 belongs to no entry")
    field.ledger.sql("DELETE FROM ledger_private WHERE seq = 999", f"DELETE FROM ledger_private WHERE seq = {seq}")
    refused(field.verify(db=True), f"entry {seq}: its private row is missing")
    refused(field.verify(field.hostile()), f"entry {seq}: its private row is missing")


def test_private_content_other_than_what_was_committed_to_is_named(field: Field) -> None:
    seq = field.ledger.seq("unlearning.request.received", 8)
    field.ledger.sql(f"UPDATE ledger_private SET ciphertext = x'00' WHERE seq = {seq}")
    refused(field.verify(db=True), f"entry {seq}: its private row is not the one that it committed to")


def test_a_text_taken_away_without_an_entry_that_says_so_is_named(field: Field) -> None:
    field.ledger.sql("UPDATE ledger_entry SET leaf = NULL, redacted_by = 296 WHERE seq = 20")
    refused(field.verify(db=True), "entry 20 was redacted, and entry 296 does not say so")
    refused(field.verify(field.hostile()), "entry 20 was redacted, and entry 296 does not say so")
    field.ledger.sql(
        "PRAGMA ignore_check_constraints = ON", "UPDATE ledger_entry SET leaf = NULL, redacted_by = NULL WHERE seq = 20"
    )
    assert not field.verify(db=True).valid


def test_a_redaction_undone_is_named(field: Field) -> None:
    with field.ledger.opened() as connection:
        connection.execute("UPDATE ledger_entry SET redacted_by = NULL, leaf = ? WHERE seq = 44", (original_texts[44],))
    refused(field.verify(db=True), "entry 44 is said to be redacted, and is not")


def test_a_redacted_entry_cannot_leave_its_request(field: Field) -> None:
    field.ledger.sql("UPDATE ledger_entry SET request_id = NULL, request_ordinal = NULL WHERE seq = 44")
    refused(field.verify(db=True), "entry 45: it does not follow the entry before it of ureq_07, as number 1")


# -------------------------------------------------------------------------------------------------------- the export alone


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("tile/0/000", "tile/0/000 does not hold the hashes of its entries"),
        ("tile/0/001.p/50", "tile/0/001.p/50 does not hold"),
        ("tile/1/000.p/1", "tile/1/000.p/1 does not hold"),
        ("tile/entries/000", "entry 0"),
        ("tile/entries/001.p/50", "entry 256"),
        ("entries.ndjson", "entry 0"),
        ("private.ndjson", "line 1 of private.ndjson"),
        ("checkpoint", "checkpoint"),
        ("checkpoints/103-0.note", "checkpoints/103-0.note"),
        ("manifest.json", "manifest.json"),
    ],
)
def test_a_changed_file_of_the_export_is_named(field: Field, name: str, named: str) -> None:
    path = field.export / name
    data = bytearray(path.read_bytes())
    data[data.index(b"306") if name == "manifest.json" else 3] ^= 1
    path.write_bytes(data)
    refused(field.verify(), f"{name} was changed")
    sums(field.export)  # whoever changes a file can also make its checksum right
    refused(field.verify(), named)


def test_files_that_are_missing_or_more_than_there_should_be_are_named(field: Field) -> None:
    (field.export / "tile/0/000").rename(field.folder / "away")
    refused(field.verify(), "tile/0/000 is missing")
    sums(field.export)
    report = field.verify()
    assert (report.status, report.reason) == (UNDECIDED, "there is no tile/0/000")
    (field.folder / "away").rename(field.export / "tile/0/000")
    sums(field.export)
    (field.export / "tile/0/002").write_bytes(b"")
    refused(field.verify(), "tile/0/002 is not named by SHA256SUMS")
    sums(field.export)
    refused(field.verify(), "tile/0/002 does not belong into an export")


def test_lines_beyond_the_checkpoint_and_bundles_beyond_their_entries_are_named(field: Field) -> None:
    lines = (field.export / "entries.ndjson").read_bytes()
    (field.export / "entries.ndjson").write_bytes(lines + b"{}\n")
    sums(field.export)
    refused(field.verify(), "entries.ndjson has more lines")
    (field.export / "entries.ndjson").write_bytes(lines)
    bundle = field.export / "tile/entries/001.p/50"
    bundle.write_bytes(bundle.read_bytes() + b"\0")
    sums(field.export)
    refused(field.verify(), "tile/entries/001.p/50 is not as long as its entries")


def test_a_manifest_that_hides_a_redaction_is_refused(field: Field) -> None:
    manifest = json.loads((field.export / "manifest.json").read_text())
    assert manifest["redacted"] == [{"seq": 44, "by": 296}]
    (field.export / "manifest.json").write_text(json.dumps(manifest | {"redacted": []}))
    sums(field.export)
    refused(field.verify(), "manifest.json: it is not of this ledger, this size or these redactions")


def test_an_export_with_a_link_in_it_is_refused(field: Field) -> None:
    shutil.move(field.export / "schema.json", field.folder / "schema")
    (field.export / "schema.json").symlink_to(field.folder / "schema")
    refused(field.verify(), "schema.json is neither a file nor a folder")
