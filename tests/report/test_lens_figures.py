"""The picture of a persona shows every value, and says where there is none."""

from __future__ import annotations

import pandas as pd
import pytest

from probe.report.persona_picture import draw_persona_picture


@pytest.mark.parametrize("lowest", [0.05, 0.45])
def test_no_interval_is_cut_off_and_a_site_without_labels_says_so(lowest: float) -> None:
    where = {"persona": "nurse", "layer": 1, "n": 9, "note": ""}
    readable = pd.DataFrame(
        [
            where
            | {"position": position, "target": "disagreement", "value": 0.5, "low": lowest, "high": 0.6, "rows": 9}
            for position in ("persona_end", "prompt_end")
        ]
    )
    shared = {"position": "prompt_end", "stratum": "all", "reader": "lens", "target": "latent"}
    agreement = pd.DataFrame([where | shared | {"value": 0.7, "low": 0.6, "high": 0.8}])
    reliability = pd.DataFrame([where | {"position": "prompt_end", "reliable": True}])
    figure = draw_persona_picture("nurse", readable, agreement, reliability, pd.DataFrame()).figure
    top = figure.axes[:2]
    assert all(ax.get_ylim()[0] < lowest for ax in top)
    told = [[text.get_text() for text in ax.texts] for ax in figure.axes[2:]]
    assert told == [["no label is read here"], []]
