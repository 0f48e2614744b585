"""Merkle trees against the definition in RFC 6962 and vectors of the certificate transparency project."""

import hashlib

import pytest

from app.core.merkle import inclusion_proof, merkle_root, verify_inclusion

# The input and roots of the reference tests of certificate-transparency (merkletree/merkle_tree_test.cc).
LEAVES = [
    bytes.fromhex(leaf) for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def by_definition(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


@pytest.mark.parametrize("count", range(1, 9))
def test_published_roots(count: int) -> None:
    assert merkle_root(LEAVES[:count]).hex() == ROOTS[count - 1]


def test_every_size_is_the_tree_of_the_definition_and_every_leaf_can_be_proved() -> None:
    for count in range(41):
        leaves = [str(i).encode() for i in range(count)]
        root = merkle_root(leaves)
        assert root == by_definition(leaves)
        for index, leaf in enumerate(leaves):
            proof = inclusion_proof(leaves, index)
            assert verify_inclusion(root, leaf, index=index, count=count, proof=proof)
            assert not verify_inclusion(root, leaf + b"x", index=index, count=count, proof=proof)
            assert not verify_inclusion(root, leaf, index=index, count=count, proof=[*proof, root])
            assert not proof or not verify_inclusion(root, leaf, index=index, count=count, proof=proof[:-1])
            assert count == 1 or not verify_inclusion(root, leaf, index=(index + 1) % count, count=count, proof=proof)


def test_a_place_outside_the_list_has_no_proof() -> None:
    with pytest.raises(IndexError):
        inclusion_proof([b"a"], 1)
    assert not verify_inclusion(merkle_root([b"a"]), b"a", index=1, count=1, proof=[])
