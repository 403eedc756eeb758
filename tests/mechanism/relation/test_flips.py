"""The flip table shows what means hide, and what any change of wording would flip anyway."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.relation.flips import FLIPS, flip_table, flips_of

LABELS = np.array(["A", "B", "C"])


def labelled(persona: str, latent: np.ndarray, stated: np.ndarray, wording: str = "w0", role: str = "") -> pd.DataFrame:
    n = len(latent)
    frame = pd.DataFrame({"case": [f"c{i}" for i in range(n)], "persona": persona, "wording": wording, "role": role})
    frame = frame.assign(target="B", condition=wording, y_latent=LABELS[latent])
    return frame.assign(y_gen=[None if k < 0 else LABELS[k] for k in stated])


def table_of(*frames: pd.DataFrame) -> pd.DataFrame:
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": list(LABELS)}
    return table


def test_every_pair_of_moves_has_its_kind() -> None:
    latent, stated = np.array([1, 1, 0, 1, 0, 0]), np.array([1, 2, 1, 0, 0, -1])
    base = np.zeros(6, dtype=int)
    kinds = [(*FLIPS, "unstated")[k] for k in flips_of(latent, base, stated, base)]
    assert kinds == ["carried", "divergent", "stated_only", "latent_only", "none", "unstated"]


def test_moves_that_cancel_in_the_mean_are_seen_and_the_kinds_sum_to_one() -> None:
    base = np.tile([0, 2], 30)
    turned = 2 - base
    shares = flip_table(table_of(labelled("none", base, base), labelled("p", turned, turned))).set_index("flip")[
        "value"
    ]
    assert shares["carried"] == 1.0
    assert (turned - base).mean() == 0
    assert shares[list(FLIPS)].sum() == pytest.approx(1.0)


def test_what_control_wordings_flip_too_is_no_excess() -> None:
    rng = np.random.default_rng(0)
    n = 300
    truth = rng.integers(0, 3, n)

    def reworded() -> np.ndarray:
        return np.where(rng.random(n) < 0.2, rng.integers(0, 3, n), truth)

    controls = [labelled("control", reworded(), reworded(), f"w{i}", "control") for i in range(6)]
    null, moved = labelled("null", reworded(), reworded()), labelled("moved", reworded(), (truth + 1) % 3)
    found = flip_table(table_of(*controls, null, moved), base="controls").set_index(["persona", "flip"])
    for kind in FLIPS:
        row = found.loc[("null", kind)]
        assert row["control"] > 0
        assert row["excess_low"] < 0.03
        assert row["excess_high"] > -0.03
    assert found.loc[("null", "none"), "value"] < 0.8  # labels near a cut flip with any wording
    assert found.loc[("moved", "stated_only"), "excess_low"] > 0.4


def test_answers_without_a_label_are_counted_apart_and_a_table_without_controls_says_so() -> None:
    base = np.zeros(40, dtype=int)
    stated = base.copy()
    stated[:10] = -1
    found = flip_table(table_of(labelled("none", base, base), labelled("p", base, stated))).set_index("flip")
    assert found.loc["unstated", "value"] == 0.25
    assert found.loc["none", "n"] == 30
    assert found.loc["none", "value"] == 1.0
    assert found["excess"].isna().all()
    assert (found["note"] == "no control wordings").all()
