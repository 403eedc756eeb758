"""Attribution of a shift is exact: parts and norm term add up, with a softcap, a LayerNorm, several tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.mechanism import in_memory
from probe.mechanism.lens.attribution import attributed, attribution_table, components_of, secant_weights
from probe.mechanism.lens.head import contrasts, project
from probe.mechanism.lens.reads import LensQuestion, LensReads, read_lens
from probe.values import ProbeError
from tests.mechanism.lens.lens_scenes import head_of, planted, site_of, table_of

PERSONAS = ("none", "nurse", "bold")


def reads_of(kind: str, softcap: float, layers: int = 4, seed: int = 0) -> tuple[LensReads, object, np.ndarray]:
    """Random terms added up block by block; one persona has longer residuals, so that the norm term counts."""
    rng, head, table = np.random.default_rng(seed), head_of(kind, softcap), table_of(PERSONAS, 15)
    terms = (
        rng.normal(0, 1, (len(table), 2 * layers + 1, 24)) * np.where(table["persona"] == "bold", 2, 1)[:, None, None]
    )
    x = np.stack([terms[:, : 2 * k + 1].sum(1) for k in range(layers + 1)], axis=1)
    acts = in_memory(table, x, "prompt_end")
    return read_lens(acts, head, site_of(head, x[:, -1]), LensQuestion("none", layers)), head, terms


@pytest.mark.parametrize(("kind", "softcap"), [("rms", 0.0), ("rms", 6.0), ("layer", 0.0), ("layer", 6.0)])
@pytest.mark.parametrize("streams", [False, True])
def test_components_and_norm_sum_to_the_shift_before_the_softcap(kind: str, softcap: float, streams: bool) -> None:
    reads, head, terms = reads_of(kind, softcap)
    direct = {
        (stream, b): project(head, terms[:, 2 * b + 1 + k]).direct
        for b in range(4)
        for k, stream in enumerate(("attn_out", "mlp_out"))
    }
    components = components_of(reads, direct if streams else {})
    assert len(components.names) == (10 if streams else 5)
    ours, theirs = (np.flatnonzero(reads.table["persona"] == name) for name in ("bold", "none"))
    parts = attributed(reads, head, components, ours, theirs)
    np.testing.assert_allclose(parts[:, :-1].sum(1), parts[:, -1], atol=1e-9)
    np.testing.assert_allclose(parts[:, -1], reads.lens[-1, ours] - reads.lens[-1, theirs], atol=1e-12)
    assert np.abs(parts[:, -2]).max() > 0.1  # the norm term is no afterthought here
    if streams:
        assert np.abs(parts[:, components.names.index("rounding")]).max() < 1e-9
    table = attribution_table(reads, head, components, ["none"], np.random.default_rng(0))
    pooled = table[table["stratum"] == "all"].pivot_table(
        index=["persona", "contrast"], columns="component", values="value"
    )
    np.testing.assert_allclose(pooled.drop(columns="total").sum(axis=1), pooled["total"], atol=1e-9)


def test_a_component_is_what_removing_its_shift_changes_when_the_norm_is_held(  # a second definition of a contribution
) -> None:
    reads, head, terms = reads_of("rms", 0.0)
    components = components_of(reads, {})
    ours, theirs = (np.flatnonzero(reads.table["persona"] == name) for name in ("nurse", "none"))
    parts = attributed(reads, head, components, ours, theirs)
    last = reads.projected[-1]
    mean = ((1 / last.norm[ours] + 1 / last.norm[theirs]) / 2)[:, None]
    step = project(head, terms[:, 5:7].sum(1))  # what block 2 adds
    tokens = head.token_ids.tolist()
    clinic, hospital = tokens.index(12), tokens.index(17)
    moved = (step.direct[ours] - step.direct[theirs]) * mean
    np.testing.assert_allclose(parts[:, 3, 1], moved[:, hospital] - moved[:, clinic], atol=1e-9)


def test_secant_weights_are_exact_for_any_number_of_tokens_and_lie_between_the_ends() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0, 8, (2, 200, 3, 4))
    ours[:, 1, 2:], theirs[:, 1, 2:] = -np.inf, -np.inf
    weight = secant_weights(ours, theirs)
    assert (weight >= 0).all()
    np.testing.assert_allclose(weight.sum(2), 1)
    change = np.where(np.isfinite(ours), ours, 0) - np.where(np.isfinite(theirs), theirs, 0)
    expected = np.logaddexp.reduce(ours, axis=2) - np.logaddexp.reduce(theirs, axis=2)
    np.testing.assert_allclose((weight * change).sum(2), expected, atol=1e-9)
    same = secant_weights(ours, ours)[:, 0]
    np.testing.assert_allclose(same, np.exp(ours[:, 0] - np.logaddexp.reduce(ours[:, 0], axis=1)[:, None]), atol=1e-6)


def test_components_that_lack_a_term_are_refused_and_without_the_last_point_there_is_no_attribution() -> None:
    reads, head, _ = reads_of("rms", 0.0)
    components = components_of(reads, {})
    short = replace(components, direct=components.direct[:-1], names=components.names[:-1])
    with pytest.raises(ProbeError, match="components must sum"):
        attribution_table(reads, head, short, ["none"], np.random.default_rng(0))
    assert attribution_table(replace(reads, check=None), head, components, ["none"], np.random.default_rng(0)).empty


@pytest.mark.parametrize(("scale", "refused"), [(1.0, False), (0.5, True)])
def test_streams_that_are_not_what_their_block_added_are_refused_and_not_called_rounding(
    scale: float, refused: bool
) -> None:
    reads, head, terms = reads_of("rms", 0.0)
    direct = {
        (stream, block): scale * project(head, terms[:, 1 + 2 * block + k]).direct
        for block in range(4)
        for k, stream in enumerate(("attn_out", "mlp_out"))
    }
    if not refused:
        assert components_of(reads, direct).names[-1] == "rounding"
        return
    with pytest.raises(ProbeError, match="must be what their blocks add"):
        components_of(reads, direct)


def test_the_component_that_was_planted_carries_the_shift() -> None:
    acts, head = planted(PERSONAS, 40, (0, 3, 6))
    reads = read_lens(acts, head, site_of(head, acts.at(8, "prompt_end").x), LensQuestion("none", 8))
    table = attribution_table(reads, head, components_of(reads, {}), ["none"], np.random.default_rng(0))
    own = table[(table["stratum"] == "all") & (table["contrast"] == "hospital-clinic")].set_index(
        ["persona", "component"]
    )
    for persona, block in (("nurse", 2), ("bold", 5)):  # a shift from point k on is added by block k - 1
        rows = own.loc[persona].drop(["total", "norm"])
        assert rows["value"].abs().idxmax() == f"block {block}"
        assert rows.loc[f"block {block}", "low"] > 0
        assert own.loc[(persona, f"block {block}"), "layer"] == block
    assert contrasts(np.zeros((1, 3))).shape == (1, 2)
