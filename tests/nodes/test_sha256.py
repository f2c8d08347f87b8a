"""The browser's SHA-256 of a file, with its own function and piece by piece, is Python's."""

import hashlib
import random

import pytest

PIECE = 4 * 1024 * 1024
HASH = """async ([name, size, seed]) => {
    const bytes = new Uint8Array(size)
    let state = seed
    for (let i = 0; i < size; i++) {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0
        bytes[i] = state >>> 24
    }
    return (await import('/js/files/sha256.js'))[name](new Blob([bytes]))
}"""


def content(size, seed):
    """The same bytes as in the page."""
    found = bytearray(size)
    for i in range(size):
        seed = (seed * 1664525 + 1013904223) & 0xFFFFFFFF
        found[i] = seed >> 24
    return bytes(found)


# around the places where the padding needs a block more, and where a piece ends
@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, PIECE - 1, PIECE, PIECE + 57])
@pytest.mark.parametrize("name", ["sha256", "sha256InPieces"])
def test_sha256(scripts, name, size):
    seed = random.Random(size).randrange(2**32)
    assert scripts.evaluate(HASH, [name, size, seed]) == hashlib.sha256(content(size, seed)).hexdigest()
