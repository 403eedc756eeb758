"""Figures and sentences of the relation say what the tables say, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.relation.flips import flip_table
from probe.mechanism.relation.locus import loci
from probe.mechanism.relation.simulated import simulated_table
from probe.mechanism.relation.verdict_table import relation
from probe.mechanism.relation.verdicts import VERDICTS
from probe.report.drawn import save
from probe.report.relation import relation_figures
from probe.report.relation_sentences import WORDS, prediction_sentence, relation_sentence, sides_sentence


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    table = simulated_table(np.random.default_rng(0), 120, wordings=2)
    rows = relation(loci(table, base="controls", outcomes=["expected_urgency"]))
    return rows, flip_table(table, base="controls")


def sides() -> pd.DataFrame:
    rows = [
        {"persona": persona, "position": "prompt_end", "layer": layer, "side": side, "value": value, "low": value - 0.1}
        | {"high": value + 0.1, "chance": 0.3, "baseline": 0.2, "n": 80}
        for persona in ("all", "nurse", "placebo")
        for layer in range(3)
        for side, value in (("stated", 0.2 + 0.2 * layer), ("latent", 0.6 - 0.2 * layer), ("third", 0.2))
    ]
    return pd.DataFrame(rows)


def predicted(p: float) -> pd.DataFrame:
    plain = [{"features": name, "loss": loss} for name, loss in (("base rate", 0.36), ("saturated outputs", 0.19))]
    judged = [
        {"features": features, "position": "prompt_end", "layer": layer, "value": 0.01 * layer, "low": 0.0}
        | {"high": 0.03, "null_high": 0.002, "p": p, "p_adjusted": p}
        for features in ("state", "shift")
        for layer in range(3)
    ]
    return pd.DataFrame([*plain, *judged])


def test_every_figure_is_drawn_with_the_numbers_behind_it_and_none_without_a_table(
    tables: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    figures = relation_figures(*tables, sides(), predicted(0.005))
    assert list(figures) == ["locus_plane", "flips", "sides_with", "sides_with_personas", "prediction"]
    for name, drawn in figures.items():
        paths = save(drawn, tmp_path, name)
        assert all(path.stat().st_size > 200 for path in paths)
        assert len(drawn.numbers)
        assert len(drawn.caption) > 80
    assert list(relation_figures(*tables, pd.DataFrame(), pd.DataFrame())) == ["locus_plane", "flips"]


def test_many_personas_make_several_figures_that_fit_a_page(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    rows = pd.concat([tables[0].assign(persona=tables[0]["persona"] + f" {i}") for i in range(5)], ignore_index=True)
    figures = relation_figures(rows, tables[1], pd.DataFrame(), pd.DataFrame())
    planes = [drawn for name, drawn in figures.items() if name.startswith("locus_plane_")]
    assert len(planes) == 3
    assert all(drawn.figure.get_figheight() <= 9.2 for drawn in planes)
    assert sum(len(drawn.numbers) for drawn in planes) == len(rows)


def test_every_verdict_has_words_that_claim_no_cause(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    assert set(WORDS) == set(VERDICTS)
    for _, row in tables[0].iterrows():
        told = relation_sentence(row)
        assert str(row["verdict"]) in told
        assert "caus" not in told
        assert "120 cases" in told
    silent = tables[0][tables[0]["persona"] == "mass-only"].iloc[0]
    assert "if the rest could be any label" in relation_sentence(silent)


def test_a_gain_is_called_one_only_where_its_adjusted_p_is_small() -> None:
    assert "saves +.020" in prediction_sentence(predicted(0.005))
    assert "saves no more than the same features of other cases" in prediction_sentence(predicted(0.4))
    assert "no mediation" in prediction_sentence(predicted(0.005))


def test_the_sides_sentence_gives_chance_and_baseline_beside_the_share() -> None:
    told = sides_sentence(sides())
    assert "80 cells" in told
    assert "stated label in .60" in told
    assert "chance .30" in told
    assert "saturated outputs .20" in told
    assert "no side to take" in sides_sentence(sides().assign(value=np.nan))
