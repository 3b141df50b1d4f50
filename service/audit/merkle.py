"""Which stored hashes prove what. Pure: places in the tree go in and out, reading them is the ledger's work.

Only perfect subtrees are stored, each once and never changed: (level, idx) covers the 2**level leaves from idx * 2**level.
A range of leaves that is not one perfect subtree is the fold of several, named from left to right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from service.verifier.merkle import EMPTY, fold, node_hash

Place = tuple[int, int]
"""level, idx."""
Parts = tuple[Place, ...]
"""A hash as the perfect subtrees that it is folded from."""


def perfect(begin: int, end: int) -> Parts:
    """The perfect subtrees of the leaves begin … end-1, where `begin` is a multiple of a power of two ≥ end - begin."""
    parts: list[Place] = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        parts.append((level, begin >> level))
        begin += 1 << level
    return tuple(parts)


def root(size: int) -> Parts:
    """The root of the first `size` leaves, size ≥ 1."""
    if size < 1:
        raise ValueError(f"expected a size of at least 1, got {size}")
    return perfect(0, size)


def inclusion(index: int, size: int) -> list[Parts]:
    """PATH(index, D[size]) of RFC 6962 §2.1.1, from the leaf's neighbour up. Raises: ValueError."""
    if not 0 <= index < size:
        raise ValueError(f"expected an index from 0 to {size - 1}, got {index}")
    found: list[Parts] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _left(end - begin)
        if index < middle:
            found.append(perfect(middle, end))
            end = middle
        else:
            found.append(perfect(begin, middle))
            begin = middle
    return found[::-1]


def consistency(old: int, new: int) -> list[Parts]:
    """PROOF(old, D[new]) of RFC 6962 §2.1.2; empty where one of the trees is empty or both are the same. Raises: ValueError."""
    if not 0 <= old <= new:
        raise ValueError(f"expected a size from 0 to {new}, got {old}")
    found: list[Parts] = []
    begin, end, whole = 0, new, True
    if old in (0, new):
        return found
    while old != end:
        middle = begin + _left(end - begin)
        if old <= middle:
            found.append(perfect(middle, end))
            end = middle
        else:
            found.append(perfect(begin, middle))
            begin, whole = middle, False
    if not whole:
        found.append(perfect(begin, end))
    return found[::-1]


def _left(count: int) -> int:
    """The largest power of two below `count`, count ≥ 2."""
    return 1 << ((count - 1).bit_length() - 1)


def places(wanted: Iterable[Parts]) -> set[Place]:
    """Every stored hash that is needed for these."""
    return {place for parts in wanted for place in parts}


def hashes(wanted: Iterable[Parts], stored: Mapping[Place, bytes]) -> list[bytes]:
    """Each one folded. Raises: KeyError: a stored hash is missing."""
    return [fold([stored[place] for place in parts]) for parts in wanted]


def is_extension(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Does the tree of `new` leaves begin with that of `old` leaves (RFC 9162 §2.1.4.2)? Every tree extends the empty one."""
    if not 0 <= old <= new:
        return False
    if old == new or old == 0:
        return not proof and (old_root == new_root if old == new else old_root == EMPTY)
    path = list(proof) if old & (old - 1) else [old_root, *proof]  # a perfect old tree is not told twice
    if not path:
        return False
    here, last = old - 1, new - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    first = second = path[0]
    for one in path[1:]:
        if last == 0:
            return False
        if here & 1 or here == last:
            first, second = node_hash(one, first), node_hash(one, second)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            second = node_hash(second, one)
        here, last = here >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root
