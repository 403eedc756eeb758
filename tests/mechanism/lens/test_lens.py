"""The label lens: the model's own last step as numbers, exact at the last point, and refused one point too early."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from probe.mechanism import in_memory
from probe.mechanism.lens.head import (
    check_lens,
    contrast_names,
    contrasts,
    label_head,
    label_scores,
    likeliest,
    project,
    token_places,
)
from probe.mechanism.lens.reads import LensQuestion, read_lens
from probe.values import ProbeError
from tests.mechanism.lens.lens_scenes import IDS, OPTIONS, head_of, planted, site_of, table_of

KINDS = [("rms", 0.0), ("rms", 6.0), ("layer", 0.0), ("layer", 6.0)]


@pytest.mark.parametrize(("kind", "softcap"), KINDS)
def test_direct_part_and_norm_give_the_logits_of_the_formula_written_out(kind: str, softcap: float) -> None:
    head, x = head_of(kind, softcap), np.random.default_rng(3).normal(0, 2, (6, 24))
    for row, logits in zip(x, project(head, x).logits(head), strict=True):
        centred = row - row.mean() if kind == "layer" else row
        normed = centred / np.sqrt((centred**2).mean() + head.eps) * head.weight + head.bias
        expected = [head.scale * (float(u @ normed) + b) for u, b in zip(head.unembed, head.unembed_bias, strict=True)]
        np.testing.assert_allclose(logits, expected, rtol=1e-10)


def test_direct_parts_of_terms_add_up_and_for_a_layernorm_only_after_centring() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(3, 1, (2, 5, 24))
    for kind in ("rms", "layer"):
        head = head_of(kind)
        parts = project(head, a).direct + project(head, b).direct
        np.testing.assert_allclose(parts, project(head, a + b).direct, rtol=1e-10)
    constant = np.full((5, 24), 7.0)  # what a LayerNorm cannot see must have no part in anything
    assert np.abs(project(head_of("layer"), constant).direct).max() < 1e-9
    assert np.abs(project(head_of("rms"), constant).direct).max() > 1


def test_labels_are_summed_over_their_tokens_and_a_token_the_head_lacks_leaves_a_row_without_a_lens() -> None:
    head, x = head_of(), np.random.default_rng(5).normal(size=(3, 24))
    ids = np.repeat(IDS, 3, axis=0)
    ids[2, 1, 0] = 777
    places = token_places(head, ids)
    logits = project(head, x).logits(head)
    scores = label_scores(logits, places)
    by_id = dict(zip(head.token_ids.tolist(), logits.T, strict=True))
    np.testing.assert_allclose(scores[:2, 0], np.log(np.exp(by_id[11]) + np.exp(by_id[40]))[:2])
    np.testing.assert_allclose(scores[:2, 1], by_id[12][:2])
    assert np.isnan(scores[2]).all()


def test_contrasts_are_with_the_middle_option_and_give_the_likeliest_label_again() -> None:
    assert contrast_names(OPTIONS) == ("home-clinic", "hospital-clinic")
    assert contrast_names(("no", "yes")) == ("yes-no",)
    for k in (2, 3, 4, 5):
        scores = np.random.default_rng(k).normal(size=(50, k))
        assert likeliest(contrasts(scores)).tolist() == scores.argmax(1).tolist()
        np.testing.assert_allclose(contrasts(scores), contrasts(scores + 9.0))
    assert likeliest(np.array([[np.nan, 1.0]])).tolist() == [-1]


@pytest.mark.parametrize(("kind", "softcap"), KINDS)
def test_the_last_point_passes_the_check_and_the_point_before_it_does_not(kind: str, softcap: float) -> None:
    head, rng = head_of(kind, softcap), np.random.default_rng(6)
    last = rng.normal(0, 1, (20, 24))
    site = site_of(head, last)
    good = check_lens(head, project(head, last), site.places, site.logp, "prompt_end")
    assert good.passed
    assert good.error < 1e-9
    before = last - rng.normal(0, 0.3, last.shape)
    assert not check_lens(head, project(head, before), site.places, site.logp, "prompt_end").passed


def test_a_forgotten_softcap_or_centring_fails_the_check() -> None:
    last = np.random.default_rng(7).normal(1, 1, (20, 24))
    site = site_of(head_of("rms", 4.0), last)
    uncapped = replace(head_of("rms", 4.0), softcap=0.0)
    assert not check_lens(uncapped, project(uncapped, last), site.places, site.logp, "prompt_end").passed
    site, wrong = site_of(head_of("layer"), last), replace(head_of("layer"), kind="rms")
    assert not check_lens(wrong, project(wrong, last), site.places, site.logp, "prompt_end").passed


def test_residuals_of_another_point_are_refused_with_the_number() -> None:
    acts, head = planted(("none", "nurse"), 30, (0, 4))
    x = np.stack([acts.at(layer, "prompt_end").x for layer in acts.layers], axis=1)
    site = site_of(head, x[:, -1])
    good = read_lens(acts, head, site, LensQuestion("none", 8))
    assert good.check is not None
    shifted = in_memory(acts.table, np.concatenate([x[:, :1], x[:, :-1]], axis=1), "prompt_end")
    with pytest.raises(ProbeError, match=r"differ by up to .* nats .* not of one model"):
        read_lens(shifted, head, site, LensQuestion("none", 8))
    unchecked = read_lens(shifted, head, site, LensQuestion("none", 9))  # there the last point is not captured
    assert unchecked.check is None


def test_a_rotation_moves_tokens_and_not_options() -> None:
    head, d = head_of(), 24
    table = table_of(("none",), 12, rotations=3)
    x = np.random.default_rng(8).normal(0, 1, (12, 2, d))[np.tile(np.arange(12), 3)]
    letters = np.array([[11, -1], [12, -1], [17, -1]])
    ids = np.stack([np.roll(letters, -rotation, axis=0) for rotation in table["rotation"]])
    reads = read_lens(in_memory(table, x, "prompt_end"), head, site_of(head, x[:, -1], ids), LensQuestion("none", 1))
    scores = project(head, x[:12, -1]).logits(head)
    by_id = dict(zip(head.token_ids.tolist(), scores.T, strict=True))
    for rotation in range(3):
        rows = (reads.table["rotation"] == rotation).to_numpy()
        clinic, hospital = (by_id[[11, 12, 17][(k + rotation) % 3]] for k in (1, 2))
        np.testing.assert_allclose(reads.lens[-1, rows, 1], hospital - clinic)
    # The offsets are of the same rotation: another one has other tokens.
    assert len({tuple(np.round(row, 6)) for row in reads.offset[-1].tolist()}) >= 3


def test_the_baseline_is_the_bases_content_free_case_or_its_mean_over_the_other_folds() -> None:
    acts, head = planted(("none", "nurse"), 30, (0, 4))
    last = acts.at(8, "prompt_end").x
    site = site_of(head, last)
    named = read_lens(acts, head, site, LensQuestion("none", 8, content_free=frozenset({"case-7"})))
    assert named.baseline == "content-free case"
    assert "case-7" not in set(named.table["case"])
    plain = read_lens(acts, head, site, LensQuestion("none", 8))
    assert plain.baseline == "mean over training cases"
    row = int(np.flatnonzero((acts.table["persona"] == "none") & (acts.table["case"] == "case-7"))[0])
    np.testing.assert_allclose(named.offset, np.broadcast_to(plain.lens[:, row][:, None], named.offset.shape))
    assert len({tuple(one) for one in np.round(plain.offset[3], 9).tolist()}) == 5  # one per fold, of the base alone
    np.testing.assert_array_equal(named.lens_label[-1], likeliest(named.final))  # at the last point: the model's own


def test_a_readout_of_another_form_is_refused() -> None:
    tensors = {name: np.ones(shape) for name, shape in _SHAPES.items()}
    metadata = {"norm.kind": "rms", "norm.eps": "1e-6", "logit_scale": "1.0", "softcap": "0.0"}
    assert label_head(tensors, metadata | {"token_ids": json.dumps([3, 4])}).constant.shape == (2,)
    with pytest.raises(ProbeError, match="form of docs/FORMAT"):
        label_head(tensors, metadata)
    with pytest.raises(ProbeError, match="rms or layer, found 'p-norm'"):
        label_head(tensors, metadata | {"token_ids": "[3, 4]", "norm.kind": "p-norm"})
    with pytest.raises(ProbeError, match="width 24, found 5"):
        project(head_of(), np.ones((1, 5)))


_SHAPES = {"norm.weight": (4,), "norm.bias": (4,), "unembed.weight": (2, 4), "unembed.bias": (2,)}
