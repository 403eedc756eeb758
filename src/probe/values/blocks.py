"""Case families in blocks, by a hash of their names alone. Knows names and a seed; knows no case, label or residual."""

from __future__ import annotations

import hashlib

BLOCKS = 16
"""Blocks of about as many case families each. The parts of a split in sixteenths are whole blocks."""

_DIGITS = 13


def hashed(name: str, seed: int) -> str:
    """The hash by which families are dealt out, in hex digits."""
    return hashlib.sha256(f"{seed}\x1f{name}".encode()).hexdigest()


def place_of(name: str, seed: int) -> float:
    """The place in [0, 1) that the hash gives a family: shares of a split are stretches of it."""
    return float(int(hashed(name, seed)[:_DIGITS], 16) / 16**_DIGITS)


def block_of(name: str, seed: int) -> int:
    """The block of a family, 0 to 15; places below a half are the blocks 0 to 7."""
    return int(place_of(name, seed) * BLOCKS)
