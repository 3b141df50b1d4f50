"""What was forgotten, committed to item by item without naming anybody: a salted Merkle tree (RFC 6962). Pure.

Whoever is told one item's salt and path can show that the item is in the tree; nobody learns anything of another one, and a
guess cannot be confirmed without its salt. All salts follow from one key: once that is destroyed, so are they.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from service.audit import merkle
from service.verifier.merkle import EMPTY, Frontier, leaf_hash, root_of_inclusion

ALGORITHM = "rfc6962-sha256-salted"


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


def commit(key: bytes, items: Iterable[str]) -> Commitment:
    """Commit to a set of items, in the order of their leaf hashes, which says nothing of them.

    Args:
        key: 32 random bytes, of this commitment alone.
    """
    tree, hashes = Frontier(), _leaves(key, items)
    for one in hashes:
        tree.append(one)
    return Commitment((tree.root() if hashes else EMPTY).hex(), len(hashes))


def opening(key: bytes, items: Iterable[str], item: str) -> dict[str, Any]:
    """What shows that one item is in the set, and nothing of any other. Raises: KeyError: it is not."""
    hashes = _leaves(key, items)
    mine = leaf_hash(leaf(item, salt(key, item)))
    try:
        index = hashes.index(mine)
    except ValueError:
        raise KeyError(item) from None
    tree, nodes = Frontier(), dict[merkle.Place, bytes]()
    for one in hashes:
        nodes |= {(level, idx): value for level, idx, value in tree.append(one)}
    path = merkle.hashes(merkle.inclusion(index, len(hashes)), nodes)
    told = {"item": item, "salt": salt(key, item).hex(), "index": index, "path": [h.hex() for h in path]}
    return {**told, "commitment": Commitment(tree.root().hex(), len(hashes)).as_json()}


def holds(opened: Mapping[str, Any]) -> bool:
    """Does an opening lead to the root that it names? Whether that is a certificate's is for the caller to compare."""
    value = leaf_hash(leaf(opened["item"], bytes.fromhex(opened["salt"])))
    path = [bytes.fromhex(one) for one in opened["path"]]
    found = root_of_inclusion(opened["index"], opened["commitment"]["count"], value, path)
    return found is not None and found.hex() == opened["commitment"]["root"]


def _leaves(key: bytes, items: Iterable[str]) -> list[bytes]:
    return sorted(leaf_hash(leaf(item, salt(key, item))) for item in set(items))
