"""Makers of directions: each finds what was planted on cases it never saw, and nothing once the labels are shuffled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from probe.mechanism.geometry.directions import (
    MAKERS,
    PARTS,
    contrast_of,
    judge,
    training_families,
    whitened_difference,
)
from probe.mechanism.geometry.views import whitening
from probe.mechanism.splits import families_of, part_of
from probe.values import ProbeError, Site
from tests.mechanism.geometry.geometry_samples import D, cells, unit

PLANTED = 4 * unit(3)


def contrast(rng, direction=PLANTED, layer=1, **settings):
    read = cells({"nurse": direction}, rng, **settings)
    base = (read.table["persona"] == "none").to_numpy()
    return contrast_of(read.table, read.at(layer, "prompt_end"), "nurse", "none", base)


def halves(whole, seed=0):
    train = training_families(whole.family, seed)
    return whole.only(train), whole.only(frozenset(whole.family.tolist()) - train)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", MAKERS)
def test_a_planted_direction_is_found_from_300_cases_and_shuffled_labels_lose_it(name):
    rng, maker = np.random.default_rng(0), MAKERS[name]
    whole = contrast(rng, families=200)  # 600 cases, about half of which fit
    fitted, others = halves(whole)
    assert len(fitted.shift) == pytest.approx(300, rel=0.2)
    found = maker(fitted)
    assert cosine(found.vector, PLANTED) > 0.95
    assert np.linalg.norm(found.vector) == pytest.approx(4.0, rel=0.1)
    judged = judge(found, others)
    assert judged.cosine.value > 0.95
    assert judged.cosine.low < cosine(found.vector, PLANTED) < judged.cosine.high + 0.03
    assert judged.auroc > 0.9
    assert judged.projection == pytest.approx(1.0, abs=0.1)

    order = rng.permutation(len(fitted.x))
    flips = rng.choice([-1.0, 1.0], (len(fitted.shift), 1))
    shuffled = maker(replace(fitted, towards=fitted.towards[order], shift=fitted.shift * flips))
    assert abs(cosine(shuffled.vector, PLANTED)) < 0.6
    assert abs(judge(shuffled, others).auroc - 0.5) < 0.4 * (judged.auroc - 0.5) + 0.35
    assert abs(judge(shuffled, others).cosine.value) < 0.6


def test_a_direction_says_who_made_it_on_which_cases_and_points_to_the_persona():
    rng = np.random.default_rng(1)
    fitted, _ = halves(contrast(rng))
    for name, maker in MAKERS.items():
        found = maker(fitted)
        assert (found.maker, found.persona, found.base, found.site) == (name, "nurse", "none", Site(1, "prompt_end"))
        assert found.fitted_on == set(fitted.family)
        assert found.cases == set(fitted.case)
        assert found.n_cases == len(found.cases)
        assert found.vector.dtype == np.float32
        assert (fitted.x[fitted.towards] @ found.vector).mean() > (fitted.x[~fitted.towards] @ found.vector).mean()


def test_in_sample_noise_looks_like_a_direction_and_on_other_cases_it_does_not():
    rng = np.random.default_rng(2)
    fitted, others = halves(contrast(rng, np.zeros(D), families=60))
    found = MAKERS["paired_mean"](fitted)
    along = found.vector / np.linalg.norm(found.vector)
    own, other = (x.shift @ along for x in (fitted, others))
    assert own.mean() / (own.std() / np.sqrt(len(own))) > 5
    assert abs(other.mean() / (other.std() / np.sqrt(len(other)))) < 3
    judged = judge(found, others)
    assert judged.cosine.value is None or abs(judged.cosine.value) < 1
    assert abs(judged.projection) < 0.5


def test_judging_on_families_that_fitted_is_refused_and_on_others_is_not():
    rng = np.random.default_rng(3)
    whole = contrast(rng)
    fitted, others = halves(whole)
    found = MAKERS["paired_mean"](fitted)
    with pytest.raises(ProbeError, match="families fitted it and are judged"):
        judge(found, whole)
    assert judge(found, others).cosine.value is not None


def test_a_direction_is_judged_at_its_own_site_and_width_only():
    rng = np.random.default_rng(4)
    fitted, others = halves(contrast(rng))
    found = MAKERS["paired_mean"](fitted)
    with pytest.raises(ProbeError, match="own site"):
        judge(found, replace(others, site=Site(2, "prompt_end")))
    with pytest.raises(ProbeError, match=f"width {D - 1}"):
        judge(found, replace(others, x=others.x[:, 1:], shift=others.shift[:, 1:]))


def test_the_whitened_difference_is_linear_discriminant_analysis():
    rng = np.random.default_rng(5)
    fitted, _ = halves(contrast(rng))
    arms = [fitted.x[fitted.towards], fitted.x[~fitted.towards]]
    within = np.concatenate([arm - arm.mean(0) for arm in arms])
    ours = whitening(within, 0.3, power=-1.0)(fitted.means_apart)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(fitted.x, fitted.towards).coef_[0]
    assert cosine(ours, theirs) == pytest.approx(1.0, abs=1e-6)
    assert cosine(whitened_difference(fitted).vector, theirs) > 0.9


def test_difference_in_means_follows_unpaired_cases_and_the_paired_mean_does_not():
    rng = np.random.default_rng(6)
    read = cells({"nurse": np.zeros(D)}, rng, families=40, noise=0.1)
    x = read.at(1, "prompt_end").x.copy()
    odd = (read.table["stratum"] == "odd").to_numpy()
    x[odd] += 5 * unit(9)
    persona = (read.table["persona"] == "nurse").to_numpy()
    kept = np.flatnonzero(~(persona & odd & (rng.random(len(x)) < 0.8)))
    read = read.only(kept)
    site = replace(read.at(1, "prompt_end"), x=x[kept])
    whole = contrast_of(read.table, site, "nurse", "none", (read.table["persona"] == "none").to_numpy())
    assert abs(MAKERS["difference_in_means"](whole).vector[9]) > 1
    assert abs(MAKERS["paired_mean"](whole).vector[9]) < 0.2


def test_makers_refuse_what_they_cannot_make():
    rng = np.random.default_rng(7)
    whole = contrast(rng, families=6)
    alone = replace(whole, towards=np.full(len(whole.x), True))
    for name in ("difference_in_means", "whitened_difference", "probe_weight"):
        with pytest.raises(ProbeError, match="has none there"):
            MAKERS[name](alone)
    with pytest.raises(ProbeError, match="case under both"):
        MAKERS["paired_mean"](replace(whole, shift=whole.shift[:0]))
    same = replace(whole, x=np.ones_like(whole.x), shift=np.zeros_like(whole.shift))
    for maker in MAKERS.values():
        with pytest.raises(ProbeError, match=r"no residual differs|vary within"):
            maker(same)


def test_the_training_families_are_those_of_the_part_and_follow_the_seed():
    rng = np.random.default_rng(8)
    read = cells({"nurse": PLANTED}, rng)
    families = families_of(read.table)
    part = part_of(families, PARTS, 5)
    assert training_families(families, 5) == set(families[part == "train"])
    assert training_families(families, 5) != training_families(families, 6)
