"""Figures of a patching run show every number of their tables, and are drawn where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from probe.mechanism.patching.estimates import patch_effects, run_totals
from probe.mechanism.patching.grid import HEAD_OUT, KEYS_VALUES, MLP_OUT, RESID, Place
from probe.mechanism.patching.groups import ALL_TOKENS, CASE, PROMPT_END
from probe.mechanism.patching.paths import path_shares
from probe.mechanism.patching.reads import patch_reads
from probe.report.drawn import save
from probe.report.patching import draw_grid, patch_figures
from tests.mechanism.patching.patch_worlds import game, world

LAYERS = 4
CELLS = {Place(RESID, point, group): 0.25 * point for point in range(5) for group in (CASE, PROMPT_END, ALL_TOKENS)}
CELLS |= {Place(stream, block, CASE): 0.2 for stream in (KEYS_VALUES, MLP_OUT) for block in range(LAYERS)}
CELLS |= {Place(HEAD_OUT, block, PROMPT_END, head): 0.1 * head for block in range(LAYERS) for head in range(2)}


def tables(effect: float = 0.4, personas: int = 2) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    worlds = [world(rng, CELLS, n=40, effect=effect, other_case=0.5, persona=f"p{i}") for i in range(personas)]
    whole = pd.concat(worlds, ignore_index=True)
    whole.attrs = worlds[0].attrs
    reads = patch_reads(whole)
    paths = path_shares(patch_reads(game(rng, {"direct": 0.3, "case": 0.1}, 0.1)), "none")
    return patch_effects(reads, "none", LAYERS), paths, run_totals(reads, "none")


def test_every_cell_that_is_a_finding_has_its_number_and_the_others_are_hatched(tmp_path: Path) -> None:
    effects, _, totals = tables()
    rows = effects[(effects["stratum"] == "all") & (effects["outcome"] == "expected_urgency")]
    rows = rows[(rows["stream"] == RESID) & (rows["control"] == "")]
    drawn = draw_grid(rows, totals, "direction")
    assert len(drawn.numbers) == len(rows)
    findings = rows["by_construction"].isna()
    texts = [text for ax in drawn.figure.axes for text in ax.texts]
    hatched = [patch for ax in drawn.figure.axes for patch in ax.patches if patch.get_hatch()]
    assert (len(texts), len(hatched)) == (int(findings.sum()), int((~findings).sum()))
    shown = sorted(float(text.get_text().replace("−", "-")) for text in texts)
    np.testing.assert_allclose(shown, np.sort(rows.loc[findings, "fraction"]), atol=0.0051)
    first, again = ([path.read_bytes() for path in save(drawn, tmp_path / name, "grid")] for name in "ab")
    assert first == again


def test_all_figures_are_made_and_many_personas_fill_several_pages() -> None:
    effects, paths, totals = tables()
    names = set(patch_figures(effects, paths, totals, "expected_urgency"))
    assert names == {
        *("patch_grid_latent", "patch_streams_latent", "patch_heads_latent", "patch_controls_latent", "patch_paths"),
    }
    wide = [effects.assign(persona=effects["persona"] + str(i)) for i in range(8)]
    many = patch_figures(pd.concat(wide, ignore_index=True), paths, totals, "log_odds emergency:clinic")
    assert {"patch_grid_latent_1", "patch_grid_latent_2"} <= set(many)
    assert "patch_grid_latent" not in many


def test_without_an_effect_differences_are_drawn_and_no_share() -> None:
    effects, paths, totals = tables(effect=0.0, personas=1)
    figures = patch_figures(effects, paths.iloc[:0], totals, "expected_urgency")
    assert "patch_heads_latent" not in figures
    assert "patch_paths" not in figures
    grid = figures["patch_grid_latent"].figure
    assert not [image for ax in grid.axes for image in ax.images]
    assert "(differences)" in grid.axes[0].get_ylabel()


def test_of_many_layers_every_cell_is_coloured_and_none_written() -> None:
    cells = {Place(RESID, point, group): 0.5 for point in range(33) for group in (CASE, PROMPT_END)}
    reads = patch_reads(world(np.random.default_rng(1), cells, n=30))
    effects = patch_effects(reads, "none", 32)
    drawn = patch_figures(effects, pd.DataFrame(), run_totals(reads, "none"), "expected_urgency")["patch_grid_latent"]
    assert not [text for ax in drawn.figure.axes for text in ax.texts]
    assert drawn.figure.axes[0].images[0].get_array().shape == (2, 33)
