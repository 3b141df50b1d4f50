"""What was forgotten, committed to item by item without naming anybody: a salted Merkle tree (RFC 6962). Pure.

Whoever is told one item's salt and path can show that the item is in the tree; nobody learns anything of another one, and a
guess cannot be confirmed without its salt. The salts of a request's items follow from one key: once that is destroyed, so are
they, and the leaves, which stay for the next version's tree, tell nothing any more.
"""

from __future__ import annotations

import hmac
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rfc8785

from service.verifier.merkle import EMPTY, HASH_BYTES, leaf_hash, node_hash, root_of_inclusion

ALGORITHM = "rfc6962-sha256-salted"
Leaves = Sequence[bytes]
"""Leaf hashes, 32 bytes each, ascending: an order that says nothing of the items."""


@dataclass(frozen=True)
class Commitment:
    """A root over so many items."""

    root: str
    count: int

    def as_json(self) -> dict[str, Any]:
        return {"alg": ALGORITHM, "root": self.root, "count": self.count}


def salt(key: bytes, item: str) -> bytes:
    """One item's: HMAC-SHA256(key, item)."""
    return hmac.digest(key, item.encode(), "sha256")


def leaf(item: str, salt: bytes) -> bytes:
    """RFC 8785 of {"item", "salt"}."""
    return rfc8785.dumps({"item": item, "salt": salt.hex()})


def leaves(key: bytes, items: Iterable[str], carried: Iterable[bytes] = ()) -> Leaves:
    """The leaves of a set of items, and those that an earlier version's tree had.

    Args:
        key: 32 random bytes, of these items alone.
        carried: leaf hashes of other items, under whatever keys.
    """
    return sorted({*carried, *(leaf_hash(leaf(item, salt(key, item))) for item in set(items))})


def commit(leaves: Leaves) -> Commitment:
    """Commit to them."""
    root, _ = _root_and_path(leaves, 0)
    return Commitment(root.hex(), len(leaves))


def opening(keys: Iterable[bytes], leaves: Leaves, item: str) -> dict[str, Any]:
    """What shows that one item is in the set, and nothing of any other.

    Args:
        keys: those that its leaf may have been made with.

    Raises:
        KeyError: it is not there under any of them.
    """
    for key in keys:
        own = salt(key, item)
        mine = leaf_hash(leaf(item, own))
        index = bisect_left(leaves, mine)
        if index < len(leaves) and leaves[index] == mine:
            root, path = _root_and_path(leaves, index)
            told = {"item": item, "salt": own.hex(), "index": index, "path": [one.hex() for one in path]}
            return {**told, "commitment": Commitment(root.hex(), len(leaves)).as_json()}
    raise KeyError(item)


def holds(opened: Mapping[str, Any]) -> bool:
    """Does an opening lead to the root that it names? Whether that is a certificate's is for the caller to compare."""
    value = leaf_hash(leaf(opened["item"], bytes.fromhex(opened["salt"])))
    path = [bytes.fromhex(one) for one in opened["path"]]
    found = root_of_inclusion(opened["index"], opened["commitment"]["count"], value, path)
    return found is not None and found.hex() == opened["commitment"]["root"]


def packed(leaves: Leaves) -> bytes:
    """One after the other, as they are stored."""
    return b"".join(leaves)


def unpacked(data: bytes) -> Leaves:
    """The same, read."""
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def _root_and_path(leaves: Leaves, index: int) -> tuple[bytes, list[bytes]]:
    """Root, and the way to it from one leaf, level by level: a node without a sibling moves up as it is (RFC 6962 §2.1)."""
    level, path = leaves, list[bytes]()
    while len(level) > 1:
        if (sibling := index ^ 1) < len(level):
            path.append(level[sibling])
        joined = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        level, index = joined + list(level[len(joined) * 2 :]), index // 2
    return (level[0] if level else EMPTY), path
