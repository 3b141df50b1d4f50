"""The Merkle tree of RFC 6962 §2.1, as somebody sees it who holds hashes and proofs and nothing else.

A subtree over 2**level leaves that begins at leaf idx * 2**level is called perfect and named (level, idx).
"""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
EMPTY = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256(0x00 || leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of a growing tree's perfect subtrees, from left to right, one for each bit of its size: all its root needs."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Raises: ValueError: not one hash for each bit that is set in `size`."""
        if len(hashes) != size.bit_count():
            raise ValueError(f"expected {size.bit_count()} hashes for a tree of {size}, got {len(hashes)}")
        self.size, self.hashes = size, list(hashes)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf by its hash. Returns the perfect subtrees that it completes, (level, idx, hash), the leaf itself first."""
        level, idx, made = 0, self.size, [(0, self.size, leaf)]
        while idx & 1:
            leaf, level, idx = node_hash(self.hashes.pop(), leaf), level + 1, idx >> 1
            made.append((level, idx, leaf))
        self.hashes.append(leaf)
        self.size += 1
        return made

    def root(self) -> bytes:
        """The tree's root."""
        return fold(self.hashes) if self.hashes else EMPTY


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over neighbouring perfect subtrees, given from left to right, each larger than the next."""
    *rest, last = hashes
    for one in reversed(rest):
        last = node_hash(one, last)
    return last


def root_of_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes | None:
    """The root that a proof leads to (RFC 9162 §2.1.3.2); None: it is no proof for this place in a tree of this size.

    Args:
        leaf: the leaf's hash.
    """
    if not 0 <= index < size:
        return None
    here, last, value = index, size - 1, leaf
    for one in proof:
        if last == 0:
            return None
        if here & 1 or here == last:
            value = node_hash(one, value)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            value = node_hash(value, one)
        here, last = here >> 1, last >> 1
    return value if last == 0 else None
