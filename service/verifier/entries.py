"""Entries in order, whoever brings them: what each must have in common with those before it and with the known tree."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

import rfc8785

from service.verifier.merkle import EMPTY, HASH_BYTES, Frontier, leaf_hash
from service.verifier.note import ED25519, Checkpoint, Key, Malformed, Note, Policy, Refused, Unsigned
from service.verifier.reading import Tampered, about

PROJECTIONS = ("action", "outcome", "at", "tenant", "actor", "request_id", "request_ordinal", "model_id")
"""What a ledger says of an entry beside its text, to search by; all of it follows from the text."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
PrivateRow = tuple[int, str | None, bool]
"""Of which entry, SHA-256 of its content, whether it was shredded."""


def _refused(text: str) -> Any:
    raise Tampered(f"an entry holds no number like {text[:20]}")


def _integer(text: str) -> int:
    return value if abs(value := int(text)) < 2**53 else _refused(text)


_TEXT = json.JSONDecoder(parse_float=_refused, parse_constant=_refused, parse_int=_integer)
_SORTED = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":"))
_AS_IT_IS = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))


def opened(leaf: bytes) -> dict[str, Any]:
    """An entry's text, which must be as RFC 8785 writes it.

    Where it is ASCII and has no floats that is JSON with sorted keys, and Python's own encoder is six times as fast as rfc8785:
    the two differ in how they write floats and in how they sort keys beyond the BMP. A test holds them against each other.
    """
    body, _ = _TEXT.raw_decode(text := leaf.decode())
    if not isinstance(body, dict) or (_SORTED.encode(body) if text.isascii() else rfc8785.dumps(body).decode()) != text:
        raise Tampered("its text is not in canonical form")
    return body


def projections(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the text of an entry says of itself."""
    request, actor = body["request"] or {"id": None, "ordinal": None}, body["actor"]
    return {
        "action": body["type"],
        "outcome": body["outcome"],
        "at": body["at"],
        "tenant": body["tenant"],
        "actor": f"{actor['kind']}:{actor['id']}",
        "request_id": request["id"],
        "request_ordinal": request["ordinal"],
        "model_id": body["model"],
    }


def line(seq: int, leaf: bytes, digest: bytes, said: Mapping[str, Any]) -> bytes:
    """What `entries.ndjson` has of an entry with a text, byte for byte as the service writes it."""
    rest = ",".join([f'"{name}":{_AS_IT_IS.encode(value)}' for name, value in said.items()])  # five times as fast as at once
    return f'{{"seq":{seq},"leaf_hash":"{digest.hex()}","leaf":{_AS_IT_IS.encode(leaf.decode())},{rest}}}\n'.encode()


class Known:
    """Roots that somebody knows, by size: of checkpoints that the log signed, or of a witness that says how far it has seen."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.roots: dict[int, list[tuple[str, bytes | None]]] = defaultdict(list)
        self.others: dict[int, list[tuple[str, Note, Checkpoint]]] = defaultdict(list)  # held against all entries at their end

    def add(self, name: str, note: bytes, *, quorum: bool = False, own: bool = False) -> Checkpoint:
        """A signed checkpoint, of whichever log of the policy: a ledger that goes on under another origin is the same tree.

        Args:
            quorum: must its witnesses have seen it? That is asked of the newest alone: they come and go.
            own: the ledger itself brings it along. Where no key of the policy signed it, one must have that its entries name.

        Raises: Tampered.
        """
        with about(name):
            try:
                found = self.policy.checkpoint(text := note.decode(), quorum=quorum)
                self.roots[found.size].append((name, found.root))
            except Unsigned:
                if not own:
                    raise
                found = Checkpoint.parse((parsed := Note.parse(text)).text)
                self.others[found.size].append((name, parsed, found))
            if not found.size and found.root != EMPTY:
                raise Tampered("it is of no entries, and its root is not that of none")
        return found

    def counts(self) -> dict[str, int]:
        """Checkpoints that the policy believes, and those that prove nothing by themselves."""
        return {
            "checkpoints": sum(map(len, self.roots.values())),
            "checkpoints_by_retired_keys": sum(map(len, self.others.values())),
        }


class History:
    """Entries from the first to the last, of a whole ledger or, without the tree, of one request."""

    def __init__(self, private: Iterable[PrivateRow] = ()) -> None:
        self.at, self.tree = "", Frontier()
        self.chains: dict[str, tuple[int, str | None, str]] = {}  # by request: next ordinal, latest entry's hash and type
        self.redacted, self.redactions = set[tuple[int, int]](), set[tuple[int, int]]()  # seq, by
        self.shredded, self.shreds = set[int](), set[int]()
        self.keys, self.passed = set[str](), dict[int, bytes]()  # verifier keys that entries name; roots on the way
        self.private = iter(private)
        self.row = next(self.private, None)

    def take(self, seq: int, leaf: bytes | None, digest: bytes, by: int | None, told: Mapping[str, Any]) -> dict[str, Any]:
        """The next entry.

        Args:
            leaf: its text; None: `by` says which entry took it away, and nothing holds what is told of it but its chain.
            told: projections, as far as there are any.

        Returns:
            What its text says; nothing, where there is none.
        """
        if len(digest) != HASH_BYTES:
            raise Tampered("its hash is none")
        if leaf is None:
            self.redacted.add((seq, _whole(by)))
            return self.follow(seq, {}, told, digest)
        if by is not None or leaf_hash(leaf) != digest:
            raise Tampered("its text is not the one of its hash")
        said = projections(body := opened(leaf))
        if wrong := [name for name in told if told[name] != said[name]]:
            raise Tampered(f"its {', '.join(wrong)} is not what its text says")
        return self.follow(seq, body, said, digest)

    def follow(self, seq: int, body: dict[str, Any], said: Mapping[str, Any], digest: bytes) -> dict[str, Any]:
        """The same, where body (empty: it was taken away) and projections are known to be those of its hash."""
        if body and said["action"] == "entry.redacted":
            self.redactions.add((_whole(body["public"]["seq"]), seq))
        elif body and said["action"] == "private.shredded":
            self.shreds.update(map(_whole, body["public"]["seqs"]))
        elif body and said["action"] == "key.added" and body["public"]["use"] == "ledger":
            self.keys.add(str(body["public"]["vkey"]))
        if "at" in said:
            if not TIME.fullmatch(said["at"]) or said["at"] < self.at:
                raise Tampered("its time is none, or lies before that of the entry before it")
            self.at = said["at"]
        if (request := said["request_id"]) is not None:
            ordinal, previous, _ = self.chains.get(request, (0, None, ""))
            if said["request_ordinal"] != ordinal or (body and body["request"]["prev"] != previous):
                raise Tampered(f"it does not follow the entry before it of {request}, as number {ordinal} of that request")
            self.chains[request] = (ordinal + 1, digest.hex(), said["action"])
        return body

    def grow(self, digest: bytes, known: Known) -> list[tuple[int, int, bytes]]:
        """The tree with one entry more, held against what is known of its size. Returns its new perfect subtrees."""
        made = self.tree.append(digest)
        if self.tree.size in known.others:
            self.passed[self.tree.size] = self.tree.root()
        for name, root in known.roots.get(self.tree.size, ()):
            if root is not None and root != self.tree.root():
                raise Tampered(f"{name}: its root is not that of the first {self.tree.size} entries")
        return made

    def keep(self, seq: int, body: Mapping[str, Any]) -> None:
        """The private row of the entry that was taken, where that committed itself to one."""
        row = self.row if self.row and self.row[0] == seq else None
        if row:
            self.row = next(self.private, None)
            self.shredded.update([seq] if row[2] else [])
        promised = body.get("privateSha256")
        if body and bool(promised or body.get("subjectCommitment")) != bool(row):
            raise Tampered("its private row is missing, or it never committed to one")
        if body and row and row[1] != promised and not (row[2] and row[1] is None):
            raise Tampered("its private row is not the one that it committed to")

    def end(self, known: Known) -> None:
        """What only the last entry can tell."""
        self._require_named(known)
        redacted, named = {seq for seq, _ in self.redacted}, {seq for seq, _ in self.redactions}
        wrong = [
            *(
                f"entry {seq} was redacted, and entry {by} does not say so"
                for seq, by in sorted(self.redacted - self.redactions)
            ),
            *(f"entry {seq} is said to be redacted, and is not" for seq in sorted(named - redacted)),
            *(f"private row {seq} was shredded silently: no entry says so" for seq in sorted(self.shredded - self.shreds)),
            *(f"private row {seq} is said to be shredded, and is not" for seq in sorted(self.shreds - self.shredded)),
            *([f"private row {self.row[0]} belongs to no entry, or stands out of order"] if self.row else []),
            *(
                f"{known.roots[size][0][0]} knows of {size} entries and here are {self.tree.size}: the end was cut off"
                for size in sorted(known.roots)
                if size > self.tree.size
            ),
        ]
        if wrong:
            raise Tampered("; ".join(wrong[:10]))

    def _require_named(self, known: Known) -> None:
        """Checkpoints that the policy does not know: an entry names the key, and signature and root hold all the same."""
        keys = list[Key]()
        for text in self.keys:
            with suppress(Malformed):  # a key that nobody can read has signed nothing
                keys.append(Key.parse(text))
        for name, note, told in chain.from_iterable(known.others.values()):
            with about(name):
                if not any(note.by(key) for key in keys if (key.name, key.kind) == (told.origin, ED25519)):
                    raise Refused(
                        f"no key of the log {told.origin} that the policy or an entry names has signed this checkpoint"
                    )
                if told.size > self.tree.size:
                    raise Tampered(f"it knows of {told.size} entries and here are {self.tree.size}: the end was cut off")
                if told.root != self.passed.get(told.size, EMPTY):
                    raise Tampered(f"its root is not that of the first {told.size} entries")


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise Tampered("it names no entry where it should")
    return value
