"""Patches say at once what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest

from probe.values import KeyValues, KVPatch, ProbeError, TokenPatch

VALUES = np.ones((2, 4), np.float32)
KEYS = np.ones((3, 2, 5), np.float32)


@pytest.mark.parametrize(
    ("tokens", "values", "columns", "words"),
    [
        ((), VALUES[:0], None, "rise from 0 on"),
        ((3, 3), VALUES, None, "rise from 0 on"),
        ((-1, 3), VALUES, None, "rise from 0 on"),
        ((1, 2, 3), VALUES, None, r"\[3, width\], found \[2, 4\]"),
        ((1, 2), VALUES, (0, 2), r"\[2, 2\], found \[2, 4\]"),
        ((1, 2), VALUES * np.nan, None, "finite"),
    ],
)
def test_a_patch_that_fits_no_row_is_refused(
    tokens: tuple[int, ...], values: np.ndarray, columns: tuple[int, int] | None, words: str
) -> None:
    with pytest.raises(ProbeError, match=words):
        TokenPatch("resid", 1, tokens, values, columns)
    assert TokenPatch("resid", 1, (1, 2), VALUES, (3, 7)).columns == (3, 7)


@pytest.mark.parametrize(
    ("layers", "keys", "seen_from", "words"),
    [
        ((), (), None, "blocks of a patch rise"),
        ((0, 1), (KEYS,), None, "2 blocks take as many arrays of keys, found 1"),
        ((0,), (KEYS[:, :1],), None, r"\[head, 2, width\], found \[3, 1, 5\]"),
        ((0,), (KEYS,), 6, "token 6, and the last of them is 6"),
        ((0,), (KEYS * np.inf,), None, "finite"),
    ],
)
def test_keys_and_values_that_fit_no_row_are_refused(
    layers: tuple[int, ...], keys: tuple[np.ndarray, ...], seen_from: int | None, words: str
) -> None:
    with pytest.raises(ProbeError, match=words):
        KVPatch(layers, (4, 6), keys, keys, seen_from)
    assert KVPatch((0,), (4, 6), (KEYS,), (KEYS,)).first_seen == 7


def test_what_was_read_patches_all_blocks_or_those_that_are_named() -> None:
    read = KeyValues((4, 6), tuple(k * KEYS for k in range(3)), tuple(-k * KEYS for k in range(3)))
    assert read.patch().layers == (0, 1, 2)
    patch = read.patch([2], seen_from=9)
    assert (patch.layers, patch.tokens, patch.first_seen) == ((2,), (4, 6), 9)
    assert float(patch.keys[0].max()) == 2 and float(patch.values[0].min()) == -2
