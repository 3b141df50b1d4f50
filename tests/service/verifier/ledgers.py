"""A real ledger in a SQLite file, its checkpoints and its export; and what somebody can do to them who owns the file."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service import db
from service.audit import export, leaves, ledger, merkle, redaction
from service.audit.export import Private, Stored
from service.audit.leaves import LOCAL, Fact
from service.verifier.merkle import EMPTY, Frontier, leaf_hash
from service.verifier.note import COSIGNATURE, ED25519, Checkpoint, Key, cosigned
from tests.service.certificates.doubles import POLICY, policy_sha256

ORIGIN = "log.example/2026"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
Row = dict[str, Any]


@dataclass
class Signers:
    """A log and its witnesses, all of their keys in one hand."""

    log: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    witnesses: list[Ed25519PrivateKey] = field(default_factory=lambda: [Ed25519PrivateKey.generate() for _ in range(3)])

    def note(self, size: int, root: bytes, *, witnesses: int = 2, time: int = 1_795_000_000, origin: str = ORIGIN) -> str:
        text = Checkpoint(origin, size, root).text
        lines = [_line(self.key(origin), self.log.sign(text.encode()))]
        for n, key in enumerate(self.witnesses[:witnesses]):
            signature = time.to_bytes(8, "big") + key.sign(cosigned(text, time))
            lines.append(_line(_key(f"w{n}.example", key, COSIGNATURE), signature))
        return text + "\n" + "".join(lines)

    def key(self, origin: str = ORIGIN) -> Key:
        """The log's verifier key."""
        return _key(origin, self.log)

    def policy(self, quorum: str = "group both 2 W0 W1 W2\nquorum both") -> str:
        lines = [f"witness W{n} {_key(f'w{n}.example', key, COSIGNATURE)}" for n, key in enumerate(self.witnesses)]
        return "\n".join([f"log {self.key()}", *lines, quorum, ""])


def _key(name: str, key: Ed25519PrivateKey, kind: int = ED25519) -> Key:
    return Key(name, kind, key.public_key().public_bytes_raw())


def _line(key: Key, signature: bytes) -> str:
    return f"— {key.name} {base64.b64encode(key.id + signature).decode()}\n"


@dataclass
class Ledger:
    """A ledger's file, who signs it, and the checkpoints that were signed so far."""

    file: Path
    signers: Signers
    stored: list[Stored] = field(default_factory=list)
    backup: dict[int, Row] = field(default_factory=dict)
    """Private rows before they were shredded: whoever attacks may have an old copy of the file."""

    # ------------------------------------------------------------------------------------------------------- honest use

    def append(self, *facts: tuple[Fact, dict[str, Any]]) -> None:
        """Each in a transaction of its own, by the service's own code."""
        with self.in_place():
            for fact, more in facts:
                with db.transaction() as session:
                    ledger.append(session, fact, actor=LOCAL, **more)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The file is the database of this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{self.file}")
            db.reset()
            yield
            db.reset()

    def sign(self, *, witnesses: int = 2) -> str:
        """Have the newest tree signed and cosigned; the checkpoint's note."""
        tree = self.tree()
        note = self.signers.note(tree.size, tree.root(), witnesses=witnesses)
        self.stored.append(Stored(tree.size, note))
        return note

    def shred(self, *seqs: int) -> None:
        """As the service does it: the rows and the entry that says so."""
        with self.opened() as connection:
            rows = connection.execute("SELECT * FROM ledger_private").fetchall()
        self.backup |= {row["seq"]: dict(row) for row in rows if row["seq"] in seqs}
        self.append((leaves.PrivateShredded(seqs=seqs, ground="retention"), {}))
        for seq in seqs:
            gone = "salt = NULL, dek_wrapped = NULL, ciphertext = NULL"
            self.sql(f"UPDATE ledger_private SET {gone}, shredded_at = '2026-11-21 12:00:00.000000' WHERE seq = {seq}")

    def redact(self, seq: int) -> None:
        """By the service's own code, one person alone."""
        with self.in_place(), db.transaction() as session:
            redaction.request(session, seq=seq, ground="personal_data", actor=LOCAL, four_eyes="solo")

    def export(self, folder: Path, stored: Sequence[Stored] | None = None) -> Path:
        """By the production writer."""
        export.write(
            folder,
            entries=map(_entry, self.rows()),
            checkpoints=self.stored if stored is None else stored,
            private=self.private(),
            policy=self.signers.policy(),
            schemas={"v": 1},
            created_at=NOW,
        )
        return folder

    def proof(self, seq: int, note: str | None = None, *, extra: bool = True) -> str:
        """C2SP tlog-proof of an entry in the newest signed tree."""
        note = note or self.stored[-1].note
        rows, tree, nodes = self.rows(), Frontier(), dict[tuple[int, int], bytes]()
        for row in rows[: int(note.split("\n")[1])]:
            nodes |= {(level, idx): value for level, idx, value in tree.append(row["leaf_hash"])}
        path = [base64.b64encode(h).decode() for h in merkle.hashes(merkle.inclusion(seq, tree.size), nodes)]
        carried = [f"extra {base64.b64encode(rows[seq]['leaf']).decode()}"] if extra else []
        return "\n".join(["c2sp.org/tlog-proof@v1", *carried, f"index {seq}", *path, "", note])

    # ---------------------------------------------------------------------------------------------------------- reading

    def rows(self) -> list[Row]:
        with self.opened() as connection:
            return [dict(row) for row in connection.execute("SELECT * FROM ledger_entry ORDER BY seq")]

    def private(self) -> Iterator[Private]:
        with self.opened() as connection:
            for row in connection.execute("SELECT * FROM ledger_private ORDER BY seq").fetchall():
                gone = row["shredded_at"] or (NOW.isoformat() if row["salt"] is None else None)
                parts = [row[name] for name in ("kek_id", "salt", "dek_wrapped", "ciphertext")]
                digest = None if None in parts else leaves.private_digest(*parts)
                at = datetime.fromisoformat(gone).replace(tzinfo=UTC) if gone else None
                yield Private(row["seq"], digest, at, row["kek_id"])

    def tree(self, size: int | None = None) -> Frontier:
        tree = Frontier()
        for row in self.rows()[:size]:
            tree.append(row["leaf_hash"])
        return tree

    def seq(self, action: str, nth: int = 0) -> int:
        return [row["seq"] for row in self.rows() if row["action"] == action][nth]

    # -------------------------------------------------------------------------------------------- who owns the file may

    @contextlib.contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.file)) as connection, connection:
            connection.row_factory = sqlite3.Row
            yield connection

    def sql(self, *statements: str) -> None:
        """As a stranger, with the guards that are there."""
        with self.opened() as connection:
            for statement in statements:
                connection.execute(statement)

    def unguard(self) -> None:
        """Drop every trigger."""
        with self.opened() as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")

    def rewrite(self, change: Callable[[list[Row]], Iterable[Row]], *, rechain: bool = False) -> None:
        """Replace the entries by changed ones and repair all that follows from them: numbers, columns, hashes, tree and head.

        Args:
            rechain: repair the chains inside the requests, too.
        """
        rows = list(change(self.rows()))
        chains: dict[str, tuple[int, str | None]] = {}
        moved: dict[int, int] = {}
        for seq, row in enumerate(rows):
            moved[row["seq"]] = seq
            row["seq"] = seq
            if row["leaf"] is None:
                chains[row["request_id"]] = (row["request_ordinal"] + 1, row["leaf_hash"].hex())
                continue
            body = json.loads(row["leaf"])
            if body["type"] == "entry.redacted":
                body["public"]["seq"] = moved[body["public"]["seq"]]
            elif body["type"] == "private.shredded":
                body["public"]["seqs"] = [moved[one] for one in body["public"]["seqs"]]
            if rechain and body["request"]:
                ordinal, previous = chains.get(body["request"]["id"], (0, None))
                body["request"] |= {"ordinal": ordinal, "prev": previous}
            if body != json.loads(row["leaf"]):
                row["leaf"] = leaves.canonical(body)
            row["leaf_hash"] = leaf_hash(row["leaf"])
            row |= columns(row["leaf"])
            if body["request"]:
                chains[body["request"]["id"]] = (body["request"]["ordinal"] + 1, row["leaf_hash"].hex())
        shreds = [json.loads(row["leaf"])["public"]["seqs"] for row in rows if row["action"] == "private.shredded"]
        gone = {seq for seqs in shreds for seq in seqs}
        for row in rows:
            row["redacted_by"] = moved.get(row["redacted_by"])
        tree = Frontier()
        nodes = [node for row in rows for node in tree.append(row["leaf_hash"])]
        with self.opened() as connection:
            kept = [dict(row) for row in connection.execute("SELECT * FROM ledger_private") if row["seq"] in moved]
            for table in ("ledger_entry", "ledger_node", "ledger_private"):
                connection.execute(f"DELETE FROM {table}")
            for row in rows:
                _insert(connection, "ledger_entry", row)
            kept = [row if moved[row["seq"]] in gone else self.backup.get(row["seq"], row) for row in kept]
            for row in kept:
                _insert(connection, "ledger_private", row | {"seq": moved[row["seq"]]})
            connection.executemany("INSERT INTO ledger_node (log_id, level, idx, hash) VALUES (1, ?, ?, ?)", nodes)
            last = rows[-1]["at"] if rows else None
            head = (tree.size, last, b"".join(tree.hashes))
            connection.execute("UPDATE ledger_head SET size = ?, last_at = ?, frontier = ?", head)

    def forged_export(self, folder: Path, stored: Sequence[Stored]) -> Path:
        """An export of whatever is in the file now, with checkpoints that need not fit it, and every checksum right."""
        with self.opened() as connection:
            size = connection.execute("SELECT count(*) FROM ledger_entry").fetchone()[0]
        tree = self.tree()
        fit = Stored(size, self.signers.note(size, tree.root() if size else EMPTY))
        self.export(folder, [fit])
        shutil.rmtree(folder / "checkpoints")
        (folder / "checkpoints").mkdir()
        for k, one in enumerate(stored):
            (folder / f"checkpoints/{one.size}-{k}.note").write_text(one.note)
        (folder / "checkpoint").write_text(max(stored, key=lambda one: one.size).note)
        sums(folder)
        return folder


def columns(leaf: bytes) -> Row:
    """The query columns that a text gives."""
    body = json.loads(leaf)
    request = body["request"] or {"id": None, "ordinal": None}
    return {
        "action": body["type"],
        "outcome": body["outcome"],
        "at": body["at"].replace("T", " ").removesuffix("Z"),
        "tenant": body["tenant"],
        "actor": f"{body['actor']['kind']}:{body['actor']['id']}",
        "request_id": request["id"],
        "request_ordinal": request["ordinal"],
        "model_id": body["model"],
    }


def sums(folder: Path) -> None:
    """Make the checksums right again."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _entry(row: Row) -> Any:
    return SimpleNamespace(**row | {"at": datetime.fromisoformat(row["at"]).replace(tzinfo=UTC)})


def _insert(connection: sqlite3.Connection, table: str, row: Row) -> None:
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


# ------------------------------------------------------------------------------------------------------------ an example

SHA = "ab" * 32
POLICY_SHA256 = policy_sha256(POLICY)
PAYLOAD_SHA256 = hashlib.sha256(b'{"a":"certificate"}').hexdigest()


def a_request(name: str, checkpoint: str | None = None, payload: str = PAYLOAD_SHA256) -> list[tuple[Fact, dict[str, Any]]]:
    """What one request leaves in a ledger, from beginning to end."""
    of = {"request_id": name, "model_id": "mdl_1"}
    received = leaves.RequestReceived(classes=(3,), method="sfron", params_sha256=SHA, seed=1, policy_sha256=POLICY_SHA256)
    plan = leaves.PlanCommitted(fence=1, spec_sha256="11" * 32, policy_sha256=POLICY_SHA256, base_digest=SHA,
                                original_digest=SHA, dataset_digest=SHA)  # fmt: skip
    issued = leaves.CertificateIssued(checkpoint_id=checkpoint or f"ckpt_{name}", payload_sha256=payload, key_id=SHA)
    return [
        (received, of | {"private": {"reason": "é" + name}}),
        (leaves.RunStarted(fence=1, base_version_id="v"), of),
        (plan, of),
        (leaves.RunFinished(fence=1, candidate_digest=SHA, iterations=5), of),
        (issued, of),
        (leaves.RequestClosed(status="succeeded"), of),
    ]


def a_ledger(file: Path) -> Ledger:
    """306 entries: one full tile and a rest; 50 requests, one shredded private row, one redacted entry, three checkpoints."""
    made = Ledger(file, Signers())
    made.append((leaves.ModelRegistered(family="ddpm", dataset_id="d", version_id="v", digest=SHA), {"model_id": "mdl_1"}))
    for n in range(17):
        made.append(*a_request(f"ureq_{n:02}"))
    made.sign()  # 103
    for n in range(17, 49):
        made.append(*a_request(f"ureq_{n:02}"))
    made.sign()  # 295
    made.shred(made.seq("unlearning.request.received", 4))
    made.redact(made.seq("run.started", 7))
    made.append(*a_request("ureq_49"))
    made.append((leaves.ModelRegistered(family="ddpm", dataset_id="d", version_id="w", digest=SHA), {"model_id": "mdl_2"}))
    made.append((leaves.ModelRegistered(family="ddpm", dataset_id="d", version_id="x", digest=SHA), {"model_id": "mdl_3"}))
    made.append((leaves.ModelRegistered(family="ddpm", dataset_id="d", version_id="y", digest=SHA), {"model_id": "mdl_4"}))
    made.sign()  # 306
    return made
