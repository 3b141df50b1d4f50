"""A whole ledger: its export, and the SQLite file that it was made from."""

import contextlib
import hashlib
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from service.verifier.entries import PROJECTIONS, History, Known, PrivateRow, line, opened, projections
from service.verifier.merkle import HASH_BYTES, leaf_hash
from service.verifier.proofs import instant, trusted
from service.verifier.reading import Tampered, Undecided, about, read, reported, require_sums, sha256, unjson, walk

WIDTH, HEIGHT = 256, 8
"""A tile holds the hashes of 256 perfect subtrees of one level, and stands 8 levels of the tree high."""
NOTE = re.compile(r"checkpoints/(0|[1-9]\d*)-\d+\.note")
AT_ONCE, AHEAD = 8 * WIDTH, 6
"""Entries that another process looks at together, and how many such chunks may be under way."""
ASKED = ("request", "privateSha256", "subjectCommitment", "public")
OF_OTHERS = ("entry.redacted", "private.shredded", "key.added")
"""Entries whose public facts are about other entries, or about who signs checkpoints."""
Take = Callable[[str], bytes]
Alone = tuple[bytes, dict[str, Any], dict[str, Any]]
Chunk = tuple[bytes, list[Alone]] | None


@reported
def verify_ledger(
    directory: Path, policy_file: Path, saved: Sequence[Path] = (), witness_size: int = 0, database: Path | None = None
) -> tuple[str, dict[str, Any]]:
    """An export, against the checkpoints in it and those kept elsewhere; and the database, against them and itself.

    Args:
        policy_file: whose checkpoints are believed; never the one in the folder.
        saved: checkpoints that whoever verifies has kept.
        witness_size: how many entries a witness says that it has seen.
    """
    known, present = Known(trusted(policy_file)), walk(directory)
    require_sums(present.pop("SHA256SUMS", None), {name: sha256(path) for name, path in present.items()})

    def take(name: str) -> bytes:
        return read(present.pop(name, None), name)

    newest = known.add("checkpoint", take("checkpoint"), quorum=True)
    for name, size in [(found[0], int(found[1])) for found in map(NOTE.fullmatch, list(present)) if found]:
        if known.add(name, take(name), own=True).size != size:
            raise Tampered(f"{name} is of another size than its name says")
        present.pop(f"{name.removesuffix('.note')}.tsr", None)
    for path in saved:
        known.add(str(path), read(path, str(path)))
    if witness_size:
        known.roots[witness_size].append(("the witness", None))
    history = _export(present, take, newest.size, known)
    redacted = [{"seq": seq, "by": by} for seq, by in sorted(history.redacted)]
    with about("manifest.json"):
        manifest = unjson(take("manifest.json"))
        if [manifest[key] for key in ("origin", "size", "redacted")] != [newest.origin, newest.size, redacted]:
            raise Tampered("it is not of this ledger, this size or these redactions")
    for name in sorted(present.keys() - {"policy.txt", "schema.json"}):
        raise Tampered(f"{name} does not belong into an export")
    if database:
        with about(database.name):
            _database(database, known)
    facts = {
        "origin": newest.origin,
        "entries": newest.size,
        "root": newest.root.hex(),
        **known.counts(),
        "requests": len(history.chains),
        "redacted": redacted,
        "shredded": sorted(history.shredded),
        "as_of": instant(newest.seen_at) or history.at,
    }
    return "every hash, root, column and row follows from the entries", facts


def tile(level: int | str, index: int, width: int = WIDTH) -> str:
    """A tile's path (C2SP tlog-tiles): index 1234067 is x001/x234/067, and a tile that is not full says its width."""
    digits = str(index).zfill((len(str(index)) + 2) // 3 * 3)
    parts = [f"x{digits[i : i + 3]}" for i in range(0, len(digits), 3)]
    return f"tile/{level}/{'/'.join([*parts[:-1], parts[-1][1:]])}" + (f".p/{width}" if width < WIDTH else "")


def _export(present: dict[str, Path], take: Take, size: int, known: Known) -> History:
    files = [present.pop(name, None) for name in ("entries.ndjson", "private.ndjson")]
    if not files[0] or not files[1]:
        raise Undecided("there is no entries.ndjson, or no private.ndjson")
    hashes: dict[int, bytearray] = {}
    with files[0].open("rb") as lines, files[1].open("rb") as rows, ProcessPoolExecutor() as pool:
        history = History(_private(rows))
        for seq, text, said, alone in _looked_at(pool, take, size, lines):
            with about(f"entry {seq}"):
                if alone:
                    digest, told, body = alone
                    history.follow(seq, body, told, digest)
                else:
                    digest, body = _entry(history, seq, text, said)
                history.keep(seq, body)
            for level, idx, value in history.grow(digest, known):
                if level % HEIGHT == 0:
                    hashes.setdefault(level // HEIGHT, bytearray()).extend(value)
                    if idx % WIDTH == WIDTH - 1:
                        _require_tile(take, level // HEIGHT, idx // WIDTH, hashes[level // HEIGHT])
        if lines.read(1):
            raise Tampered(f"entries.ndjson has more lines than the checkpoint's {size} entries")
    for level, rest in hashes.items():
        if rest:
            _require_tile(take, level, size >> HEIGHT * (level + 1), rest)
    history.end(known)
    return history


def _entry(history: History, seq: int, text: bytes, said: bytes) -> tuple[bytes, dict[str, Any]]:
    """Takes the next entry. Its hash and body.

    Its line is mostly the very bytes that the service writes of such a text; any other is read, and may still say the same.
    """
    if text:
        told, digest = projections(body := opened(text)), leaf_hash(text)
        if said == line(seq, text, digest, told):
            return digest, history.follow(seq, body, told, digest)
    told = unjson(said)
    digest, by, leaf = bytes.fromhex(told.pop("leaf_hash")), told.pop("redacted_by", None), told.pop("leaf", None)
    if told.pop("seq") != seq or told.keys() != set(PROJECTIONS) or text != (leaf or "").encode():
        raise Tampered("its line in entries.ndjson and its bundle do not say the same")
    return digest, history.take(seq, text or None, digest, by, told)


def _looked_at(
    pool: ProcessPoolExecutor, take: Take, size: int, lines: BinaryIO
) -> Iterator[tuple[int, bytes, bytes, Alone | None]]:
    """Number, text and line of every entry, and what `_alone` found of it, if all is well with it and its neighbours.

    Most of the work is in single entries, and other processes do it, a few bundles ahead of the one that puts them together.
    """
    ahead: deque[tuple[int, list[bytes], list[bytes], Callable[[], Chunk]]] = deque()
    fault: Exception | None = None
    for begin in range(0, size, AT_ONCE):
        end, texts = min(begin + AT_ONCE, size), list[bytes]()
        try:
            for first in range(begin, end, WIDTH):
                texts += _bundled(take, first, min(WIDTH, end - first))
        except (Tampered, Undecided, OSError) as error:
            fault = error  # what is wrong with the entries before it comes first
        said = [lines.readline() for _ in texts]
        looks = pool.submit(_alone, begin, texts).result if size > AT_ONCE else partial(_alone, begin, texts)
        ahead.append((begin, texts, said, looks))
        if fault:
            break
        if len(ahead) > AHEAD:
            yield from _of_chunk(*ahead.popleft())
    for chunk in ahead:
        yield from _of_chunk(*chunk)
    if fault:
        raise fault


def _of_chunk(
    begin: int, texts: list[bytes], said: list[bytes], answer: Callable[[], Chunk]
) -> Iterator[tuple[int, bytes, bytes, Alone | None]]:
    expected, known = answer() or (b"", [])
    same = expected == hashlib.sha256(b"".join(said)).digest()
    yield from zip(range(begin, begin + len(texts)), texts, said, known if same else [None] * len(texts), strict=True)


def _alone(begin: int, texts: list[bytes]) -> Chunk:
    """The SHA-256 that the lines of these texts must have together; of each its hash, what its line says and what its text
    does, as far as the history asks. None: something is odd, and whoever puts them together finds out what."""
    lines, found = hashlib.sha256(), []
    try:
        for seq, text in enumerate(texts, begin):
            said, digest = projections(body := opened(text)), leaf_hash(text)
            lines.update(line(seq, text, digest, said))
            asked = ASKED if said["action"] in OF_OTHERS else ASKED[:-1]
            told = {name: said[name] for name in ("action", "at", "request_id", "request_ordinal")}
            found.append((digest, told, {name: body[name] for name in asked if name in body}))
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return None
    return lines.digest(), found


def _bundled(take: Take, begin: int, width: int) -> Iterator[bytes]:
    """The texts in one entry bundle; that of a redacted entry is empty."""
    data, here = take(name := tile("entries", begin // WIDTH, width)), 0
    for _ in range(width):
        end = here + 2 + int.from_bytes(data[here : here + 2], "big")
        yield data[here + 2 : end]
        here = end
    if here != len(data):
        raise Tampered(f"{name} is not as long as its entries")


def _require_tile(take: Take, level: int, index: int, hashes: bytearray) -> None:
    if take(name := tile(level, index, len(hashes) // HASH_BYTES)) != hashes:
        raise Tampered(f"{name} does not hold the hashes of its entries")
    hashes.clear()


def _private(lines: Iterable[bytes]) -> Iterator[PrivateRow]:
    for number, text in enumerate(lines, 1):
        with about(f"line {number} of private.ndjson"):
            said = unjson(text)
            row = (said["seq"], said["private_sha256"], said["shredded_at"] is not None)
        yield row


# --------------------------------------------------------------------------------------------------------- the database


def _database(file: Path, known: Known) -> None:
    """The ledger's tables in one snapshot. Nothing is written."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            for (fault,) in db.execute("PRAGMA integrity_check(1)"):  # an index that hides a row has no other sign
                if fault != "ok":
                    raise Tampered(f"the file is damaged: {fault}")
            _rows(db, known)
    except sqlite3.OperationalError as error:
        raise Undecided(f"{file} cannot be read as a ledger: {error}") from error
    except sqlite3.DatabaseError as error:
        raise Tampered(f"the file is damaged: {error}") from error


def _rows(db: sqlite3.Connection, known: Known) -> None:
    for size, at, note in db.execute("SELECT size, created_at, note FROM ledger_checkpoint WHERE log_id = 1"):
        if known.add(f"the checkpoint stored at {at}", note.encode(), own=True).size != size:
            raise Tampered(f"the checkpoint stored at {at} is not of {size} entries")
    private = db.execute("SELECT * FROM ledger_private WHERE log_id = 1 ORDER BY seq")
    names = [column[0] for column in private.description]
    history = History(_secret(dict(zip(names, row, strict=True))) for row in private)
    columns = f"SELECT seq, leaf, leaf_hash, redacted_by, {', '.join(PROJECTIONS)} FROM ledger_entry"  # noqa: S608 — our names
    nodes: dict[int, Iterator[tuple[int, bytes]]] = {}
    for seq, leaf, digest, by, *values in db.execute(f"{columns} WHERE log_id = 1 ORDER BY seq"):
        if seq != history.tree.size:
            raise Tampered(f"entry {history.tree.size} is missing")
        with about(f"entry {seq}"):
            told = dict(zip(PROJECTIONS, values, strict=True))
            told["at"] = told["at"].replace(" ", "T") + "Z"
            history.keep(seq, history.take(seq, leaf, digest, by, told))
        for level, idx, value in history.grow(digest, known):
            if level not in nodes:
                of_level = "SELECT idx, hash FROM ledger_node WHERE log_id = 1 AND level = ? ORDER BY idx"
                nodes[level] = db.execute(of_level, (level,))
            if next(nodes[level], None) != (idx, value):
                raise Tampered(f"the stored subtree {idx} of level {level} is not that of its entries")
    history.end(known)
    size = history.tree.size
    if db.execute("SELECT count(*) FROM ledger_node WHERE log_id = 1").fetchone() != (2 * size - size.bit_count(),):
        raise Tampered("there are stored subtrees beyond those of its entries")
    head = db.execute("SELECT size, replace(last_at, ' ', 'T') || 'Z', frontier FROM ledger_head WHERE log_id = 1").fetchall()
    if head != [(size, history.at or None, b"".join(history.tree.hashes))]:
        raise Tampered("the head is not that of its entries")


def _secret(row: Mapping[str, Any]) -> PrivateRow:
    """A private row whose salt is gone was shredded, whatever it says; one that says so and still has it was not."""
    key, salt, dek, sealed = parts = [row.get(name) for name in ("kek_id", "salt", "dek_wrapped", "ciphertext")]
    if row["shredded_at"] is not None and (salt, dek, sealed) != (None, None, None):
        raise Tampered(f"private row {row['seq']} is said to be shredded, and is not")
    whole = None if None in parts else b"".join([str(key).encode(), b"\n", salt or b"", dek or b"", sealed or b""])
    digest = None if whole is None else hashlib.sha256(whole).hexdigest()
    return row["seq"], digest, salt is None
