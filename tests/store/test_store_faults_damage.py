"""Damaged and hostile shards and indexes: the small counts of `make torture`, and what is read nevertheless."""

from __future__ import annotations

from fault_flips import flip_bits
from fault_headers import fuzz_headers


def test_twenty_flipped_bits_are_all_noticed(write):
    found = flip_bits(write(), seed=1, n=20)
    assert (found.header, found.content, found.silent) == (10, 10, [])
    assert found.by_reading + found.by_verify == 20


def test_two_hundred_hostile_headers_are_refused_at_once_and_without_memory(write):
    found = fuzz_headers(write(), seed=1, n=200)
    assert found.tried == 200
    assert found.refused > 150
    assert found.slowest < 1.0
    assert found.grown_mb < 100
