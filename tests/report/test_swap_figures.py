"""Figures of the text swap show every number of their tables, and are drawn where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from probe.mechanism.swap.listener import confusion
from probe.mechanism.swap.paths import path_effects, path_verdicts
from probe.report.drawn import save
from probe.report.swap import MOST_GUESSES, draw_listener, draw_paths, swap_figures
from tests.mechanism.swap.swap_worlds import NONE, P, heard, world


def tables(masked: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    parts = []
    for name, planted in (("text_mediated", {"text": -0.3}), ("decoding_only", {"direct": 0.3}), ("zero", {})):
        reads = world(rng, 60, **planted)
        for kind in (False, True) if masked else (False,):
            parts.append(reads.replace({"persona": {P: name}, "author": {P: name}}).assign(masked=kind))
    whole = pd.concat(parts).drop_duplicates(["persona", "author", "masked", "case"])
    whole.attrs = reads.attrs
    return path_effects(whole, NONE), path_verdicts(whole, NONE)


def test_the_paths_of_every_persona_are_drawn_with_their_numbers(tmp_path: Path) -> None:
    effects, verdicts = tables()
    drawn = draw_paths(effects, verdicts)
    told = effects[effects["outcome"] == "expected_urgency"].reset_index(drop=True)
    pd.testing.assert_frame_equal(drawn.numbers, told)
    words = {text.get_text() for ax in drawn.figure.axes for text in ax.texts}
    assert set(verdicts["verdict"]) <= words
    first, again = ([path.read_bytes() for path in save(drawn, tmp_path / name, "paths")] for name in "ab")
    assert first == again


def test_without_masks_or_with_one_stratum_or_an_undefined_value_the_paths_are_drawn() -> None:
    effects, verdicts = tables(masked=False)
    assert draw_paths(effects, verdicts).figure.axes
    pooled = [table[table["stratum"] == "all"] for table in (effects, verdicts)]
    pooled[0].loc[pooled[0]["persona"] == "zero", ["value", "low", "high"]] = np.nan
    assert len(draw_paths(*pooled).figure.axes) == 1
    none = effects.assign(value=np.nan)
    assert swap_figures(none, verdicts, pd.DataFrame()) == {}


def test_the_listener_is_drawn_as_a_matrix_whose_rows_are_authors() -> None:
    authors = ("none", "a_long_name_of_a_persona_that_must_be_shortened", "b")
    p = {name: np.roll([0.7, 0.2, 0.1], k) for k, name in enumerate(authors)}
    plain = heard(np.random.default_rng(1), authors, p, 40)
    both = pd.concat([plain, plain.assign(masked=True)], ignore_index=True)
    drawn = draw_listener(confusion(both, "none"))
    assert len(drawn.figure.axes) == 2
    shown = [float(text.get_text()) for text in drawn.figure.axes[0].texts]
    table = drawn.numbers[~drawn.numbers["masked"]]
    matrix = table.pivot(index="author", columns="persona", values="value").loc[list(authors), list(authors)]
    np.testing.assert_allclose(shown, matrix.to_numpy().ravel(), atol=0.006)
    many = [f"p{k}" for k in range(MOST_GUESSES + 1)]
    crowd = pd.DataFrame([{"author": one, "persona": "none"} for one in many])
    assert swap_figures(pd.DataFrame(), pd.DataFrame(), crowd) == {}
