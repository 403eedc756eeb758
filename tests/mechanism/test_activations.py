"""Activations say which rows of the table they are of, also after a selection and where a position is absent."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.mechanism import in_memory
from probe.values import ProbeError

TABLE = pd.DataFrame({"case": list("abcde")})
X = np.arange(5 * 3 * 2, dtype=float).reshape(5, 3, 2)


def test_rows_without_the_position_are_left_out_and_the_others_keep_their_places() -> None:
    x = X.copy()
    x[1] = np.nan
    found = in_memory(TABLE, x, "answer").at(2, "answer")
    assert found.places.tolist() == [0, 2, 3, 4]
    np.testing.assert_array_equal(found.x, X[[0, 2, 3, 4], 2])


@pytest.mark.parametrize("keep", [np.array([False, False, True, False, True]), np.array([4, 2])])
def test_a_selection_renumbers_its_rows_in_its_own_order(keep: np.ndarray) -> None:
    chosen = in_memory(TABLE, X, "answer").only(keep)
    found = chosen.at(1, "answer")
    assert found.places.tolist() == [0, 1]
    rows = chosen.table["case"].map(list("abcde").index).to_numpy()
    np.testing.assert_array_equal(found.x, X[rows, 1])


def test_a_layer_that_was_not_captured_and_unaligned_arrays_are_refused() -> None:
    with pytest.raises(ProbeError, match="layer 7 was not captured"):
        in_memory(TABLE, X, "answer").at(7, "answer")
    with pytest.raises(ProbeError, match="5 rows for 4 cells"):
        in_memory(TABLE[:4], X, "answer")
