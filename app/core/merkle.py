"""Merkle trees as in RFC 6962, section 2.1, with SHA-256: one short hash that commits to a list, and proofs that an item is in it.

Leaves and inner nodes are hashed with different first bytes, so that no inner node can be passed off as a leaf. Pure.
"""

import hashlib
from collections.abc import Sequence


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over the leaves in their order; for none, SHA-256 of nothing.

    RFC 6962 splits at the largest power of two below n. Joining neighbours level by level, an odd one out going up as it is, is the
    same tree, without recursion.
    """
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = [leaf_hash(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _next_level(level)
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from leaf `index` to the root, from the bottom up (RFC 6962, 2.1.1)."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    level = [leaf_hash(leaf) for leaf in leaves]
    path: list[bytes] = []
    while len(level) > 1:
        beside = index ^ 1
        if beside < len(level):
            path.append(level[beside])
        level = _next_level(level)
        index //= 2
    return path


def verify_inclusion(root: bytes, leaf: bytes, *, index: int, count: int, proof: Sequence[bytes]) -> bool:
    """Whether `leaf` is number `index` of the `count` leaves under `root` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < count:
        return False
    node, last, remaining = leaf_hash(leaf), count - 1, list(proof)
    while last > 0:
        if index % 2 == 1 or index < last:
            if not remaining:
                return False
            beside = remaining.pop(0)
            node = node_hash(beside, node) if index % 2 == 1 else node_hash(node, beside)
        index //= 2
        last //= 2
    return not remaining and node == root


def _next_level(level: list[bytes]) -> list[bytes]:
    joined = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return joined if len(level) % 2 == 0 else [*joined, level[-1]]
