"""The tree against the definition of RFC 6962, written down as it stands there."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audit import merkle
from service.audit.merkle import is_extension
from service.verifier.merkle import EMPTY, Frontier, leaf_hash, node_hash, root_of_inclusion

LEAVES = [leaf_hash(bytes([n])) for n in range(130)]


def mth(leaves: list[bytes]) -> bytes:
    """MTH of §2.1, over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of §2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    return [*path(m, leaves[:k]), mth(leaves[k:])] if m < k else [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of §2.1.2."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def stored(size: int) -> dict[merkle.Place, bytes]:
    tree, nodes = Frontier(), {}
    for leaf in LEAVES[:size]:
        nodes |= {(level, idx): value for level, idx, value in tree.append(leaf)}
    return nodes


def test_the_reference_roots_of_the_rfc_authors() -> None:
    """The eight inputs and roots of google/certificate-transparency's tests."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    tree = Frontier()
    roots = []
    for text in inputs:
        tree.append(leaf_hash(bytes.fromhex(text)))
        roots.append(tree.root().hex())
    assert roots[0] == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert roots[1] == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert roots[7] == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert Frontier().root() == EMPTY


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 127, 130])
def test_every_proof_is_the_definitions_and_leads_to_the_root(size: int) -> None:
    leaves, nodes = LEAVES[:size], stored(size)
    assert len(nodes) == 2 * size - size.bit_count()
    (root,) = merkle.hashes([merkle.root(size)], nodes)
    assert root == mth(leaves)
    for index in range(size):
        proof = merkle.hashes(merkle.inclusion(index, size), nodes)
        assert proof == path(index, leaves)
        assert root_of_inclusion(index, size, leaves[index], proof) == root
    for old in range(1, size):
        proof = merkle.hashes(merkle.consistency(old, size), nodes)
        assert proof == subproof(old, leaves, True)
        assert is_extension(old, mth(leaves[:old]), size, root, proof)
    assert merkle.consistency(size, size) == merkle.consistency(0, size) == []
    assert is_extension(size, root, size, root, [])
    assert is_extension(0, EMPTY, size, root, [])


@given(st.data())
def test_no_changed_proof_is_taken(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 130))
    nodes, leaves = stored(size), LEAVES[:size]
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1))
    root = mth(leaves)

    def changed(proof: list[bytes]) -> list[bytes]:
        way = data.draw(st.sampled_from(["flip", "drop", "add", "swap"]))
        place = data.draw(st.integers(0, len(proof) - 1)) if proof else 0
        if way == "add" or not proof:
            return [*proof[:place], b"\0" * 32, *proof[place:]]
        if way == "drop":
            return proof[:place] + proof[place + 1 :]
        if way == "swap" and len(proof) > 1:
            return [*proof[1:], proof[0]]
        return [*proof[:place], bytes([proof[place][0] ^ 1]) + proof[place][1:], *proof[place + 1 :]]

    included, extended = (merkle.hashes(p, nodes) for p in (merkle.inclusion(index, size), merkle.consistency(old, size)))
    assert root_of_inclusion(index, size, leaves[index], changed(included)) != root
    assert not is_extension(old, mth(leaves[:old]), size, root, changed(extended))
    other = data.draw(st.integers(0, size - 1).filter(lambda n: n != index))
    assert root_of_inclusion(other, size, leaves[index], included) != root
    assert root_of_inclusion(index, size, LEAVES[other], included) != root
    assert not is_extension(old, LEAVES[129 - old], size, root, extended)
    assert not is_extension(old, mth(leaves[:old]), size, LEAVES[0] if size > 1 else EMPTY, extended)


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 3), (3, 3)])
def test_there_is_no_proof_of_what_is_not_in_the_tree(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected an index"):
        merkle.inclusion(*arguments)
    assert root_of_inclusion(*arguments, b"x" * 32, []) is None


def test_a_shorter_tree_extends_no_longer_one() -> None:
    with pytest.raises(ValueError, match="expected a size"):
        merkle.consistency(4, 3)
    assert not is_extension(4, EMPTY, 3, EMPTY, [])
    with pytest.raises(ValueError, match="expected a size"):
        merkle.root(0)
    with pytest.raises(ValueError, match="expected 2 hashes"):
        Frontier(3, [EMPTY])
