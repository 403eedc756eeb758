"""What a residual knows of the disagreement beyond the outputs is found where it was planted, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from probe.behaviour import read_outcomes
from probe.mechanism import Activations
from probe.mechanism.linear.crossfit import PENALTIES, CrossRidge, Predict, double_crossfit, judged, newton
from probe.mechanism.relation.explanation import Settings, prediction
from probe.mechanism.relation.gains import Judgement, max_t
from probe.mechanism.relation.saturated import saturated_outputs, splines
from probe.mechanism.relation.sides import sides_with
from probe.mechanism.relation.who_changes import who_changes
from probe.mechanism.splits import fold_of
from probe.values import ProbeError
from tests.mechanism.relation.relation_scene import planted

FEW = Settings(permutations=39)


def judged_at(acts: Activations, **more: object) -> pd.DataFrame:
    found = prediction(acts, base="none", nonsense="placebo", settings=FEW, **more)  # type: ignore[arg-type]
    return found.set_index(["features", "layer"])


def test_a_planted_push_is_found_in_its_layer_only_and_not_when_it_is_in_no_residual() -> None:
    found = judged_at(planted(0))
    assert found.loc[("state", 1), "p_adjusted"] <= 0.05
    assert found.loc[("state", 1), "value"] > 0.1
    assert found.loc[("state", 0), "p_adjusted"] > 0.05
    assert found.loc[("state", 1), "value"] > 20 * abs(found.loc[("state of another case", 1), "value"])
    hidden = judged_at(planted(0, shown=0.0))
    assert (hidden["p_adjusted"].dropna() > 0.05).all()


def test_residuals_that_hold_the_outputs_alone_save_nothing_beyond_them() -> None:
    acts = planted(1, shown=0.0, noise=0.05)  # the urgency, which decides the log-ratios, stands there almost bare
    found = judged_at(acts)
    plain = found["loss"].dropna().droplevel("layer")
    assert plain["saturated outputs"] < plain["margin and persona"] < plain["base rate"]
    assert found.loc[("state", 1), "p_adjusted"] > 0.05
    assert found.loc[("state", 1), "value"] < 0.01


def test_residuals_of_other_cases_of_the_same_persona_save_nothing() -> None:
    acts = planted(2)
    rng = np.random.default_rng(0)
    persona = acts.table["persona"].to_numpy()
    order = np.arange(len(persona))
    for name in np.unique(persona):
        order[persona == name] = rng.permutation(np.flatnonzero(persona == name))
    read = acts.read
    shuffled = replace(acts, read=lambda layer, position: (np.arange(len(order)), read(layer, position)[1][order]))
    assert (judged_at(shuffled)["p_adjusted"].dropna() > 0.05).all()


def test_too_few_disagreements_are_refused_with_their_number() -> None:
    with pytest.raises(ProbeError, match="0 disagree"):
        prediction(planted(0, n_cases=60, hidden=0.0), base="none")


def test_a_position_behind_the_answer_is_refused_where_its_baseline_is_not_told() -> None:
    acts = planted(0, n_cases=200)
    table = acts.table.copy()
    table.attrs = acts.table.attrs
    table.loc[[250, 300], "stated_logp_A"] = np.nan
    late = replace(acts, table=table, positions=("answer",))
    with pytest.raises(ProbeError, match="and 2 of 400 cells have none"):
        prediction(late, base="none", positions=["answer"], settings=FEW)


BLOCKS, SLOTS = 40, 10


def clustered(rng: np.random.Generator, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A target and columns that all hang on the case block, and have nothing to do with each other."""
    block = np.repeat(np.arange(BLOCKS), SLOTS)
    y = (rng.random(len(block)) < expit(3 * rng.normal(0, 1, BLOCKS)[block])).astype(float)
    return y, rng.normal(0, 1, (BLOCKS, columns))[block] + rng.normal(0, 0.3, (len(block), columns))


def judgement_of(y: np.ndarray, *, by_row: bool = False) -> Judgement:
    block = np.repeat(np.arange(BLOCKS), SLOTS)
    fold = fold_of(block.astype(str), 5)
    moved, slot = (np.arange(len(y)), 0 * block) if by_row else (block, np.arange(len(y)) % SLOTS)
    return Judgement(y, np.zeros((5, len(y))), np.zeros((len(y), 1)), fold, moved, slot, np.zeros(moved.max() + 1))


def rejects(rng: np.random.Generator, kind: str, *, by_row: bool) -> bool:
    """At alpha .05: one column as a feature of its own, or a readout of thirty, against its null."""
    y, x = clustered(rng, 1 if kind == "feature" else 30)
    judgement = judgement_of(y, by_row=by_row)
    orders = judgement.orders(rng, 39)
    if kind == "feature":
        left = judgement.unexplained(np.tile(x, (5, 1, 1)))
        null = judgement.null(left, orders)
    else:
        left = judgement.unexplained(judgement.readout(x))
        null = judgement.null_of_readout(x, orders)
    return bool(max_t(judgement.gain(left[None]).mean(1), null[None])[0][0] <= 0.05)


@pytest.mark.parametrize("kind", ["feature", "readout"])
@pytest.mark.parametrize("replicates", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_case_blocks_give_a_fair_null_where_rows_do_not(replicates: int, kind: str) -> None:
    rng = np.random.default_rng(5)
    blocks = np.mean([rejects(rng, kind, by_row=False) for _ in range(replicates)])
    fair = 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / replicates)
    assert blocks <= fair
    if replicates > 100:
        rows = np.mean([rejects(rng, kind, by_row=True) for _ in range(replicates)])
        print(f"\n{kind} without an effect, {replicates} replicates: case blocks {blocks:.3f}, rows {rows:.3f}")
        assert rows > fair
        assert rows - blocks > 2.5 * np.sqrt((rows * (1 - rows) + blocks * (1 - blocks)) / replicates)


def test_permutations_stay_within_stratum_and_fold_and_none_gives_what_was_observed() -> None:
    rng = np.random.default_rng(6)
    y, x = clustered(rng, 4)
    plain = judgement_of(y)
    judgement = replace(plain, stratum=np.array(["urgent", "not"], dtype=object)[np.arange(BLOCKS) % 2])
    fold = judgement.fold[::SLOTS]
    orders = judgement.orders(rng, 20)
    assert (np.sort(orders, axis=1) == np.arange(BLOCKS)).all()
    assert (fold[orders] == fold).all()
    assert (judgement.stratum[orders] == judgement.stratum).all()
    assert (orders != np.arange(BLOCKS)).any()
    observed = judgement.gain(judgement.unexplained(judgement.readout(x))[None]).mean()
    np.testing.assert_allclose(judgement.null_of_readout(x, np.arange(BLOCKS)[None]), observed)
    # A permuted study is one whose residuals were swapped from the start.
    swapped = x.reshape(BLOCKS, SLOTS, 4)[orders[0]].reshape(x.shape)
    there = judgement.gain(judgement.unexplained(judgement.readout(swapped))[None]).mean()
    np.testing.assert_allclose(judgement.null_of_readout(x, orders[:1]), there)


def test_one_odd_cell_does_not_decide_the_mean() -> None:
    y, x = clustered(np.random.default_rng(7), 1)
    judgement = judgement_of(y)
    x[0] = 1e6
    gained = judgement.gain(judgement.unexplained(np.tile(x, (5, 1, 1)))[None])
    assert gained.min() > -10


def test_a_null_that_does_not_vary_leaves_the_largest_of_the_others_as_it_is() -> None:
    rng = np.random.default_rng(8)
    null = rng.normal(0, 0.01, (2, 99))
    flat = -1.8 + rng.choice([0.0, 4e-16], (1, 99))
    alone = max_t(np.array([0.02, 0.005]), null)[1]
    beside = max_t(np.array([0.02, 0.005, -1.8]), np.concatenate([null, flat]))[1]
    np.testing.assert_array_equal(beside[:2], alone)


def test_ridge_is_scikit_learns_on_standardised_columns_few_or_many() -> None:
    rng = np.random.default_rng(0)
    fold = np.arange(60) % 5
    y = rng.standard_normal((60, 2))
    for d in (6, 90):
        x = rng.standard_normal((60, d)) * rng.uniform(0.1, 10, d)
        x[:, -1] = 3.0  # never varies: it says nothing
        ridge = CrossRidge(x, fold)
        ours = judged(ridge(y), fold)
        fit = fold != 2
        scaled = StandardScaler().fit_transform(x)
        theirs = [
            Ridge(alpha=penalty * fit.sum()).fit(scaled[fit], y[fit]).predict(scaled[~fit]) for penalty in PENALTIES
        ]
        for k in range(2):  # each target chooses its own penalty
            assert min(np.abs(ours[~fit, k] - one[:, k]).max() for one in theirs) < 1e-8
        apart = ridge(np.stack([y + f for f in range(5)]))  # targets of their own for each judged fold
        np.testing.assert_allclose(judged(apart, fold), ours + fold[:, None], atol=1e-10)


def test_the_penalty_of_a_judged_fold_is_the_one_that_predicts_the_other_folds_best() -> None:
    rng = np.random.default_rng(9)
    fold, x = np.arange(60) % 5, rng.standard_normal((60, 6))
    y = x[:, :1] + rng.standard_normal((60, 3))
    scaled = StandardScaler().fit_transform(x)
    found = CrossRidge(x, fold)(y)
    for f in range(5):
        tried = np.full((len(PENALTIES), 60, 3), np.nan)
        for g in range(5):
            fit, inside = (fold != f) & (fold != g), fold == g
            for k, penalty in enumerate(PENALTIES):
                model = Ridge(alpha=penalty * fit.sum()).fit(scaled[fit], y[fit])
                tried[k, inside] = model.predict(scaled[inside])
        best = ((tried - y) ** 2)[:, fold != f].sum(1).argmin(0)
        np.testing.assert_allclose(found[f], tried[best, :, np.arange(3)].T, atol=1e-9)


def test_newton_is_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 3))
    y = (rng.random(200) < 1 / (1 + np.exp(-x[:, 0]))).astype(float)
    theirs = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(newton(x[None], y, np.full(3, 2.0))[0], theirs.coef_[0], atol=1e-5)


def test_no_row_has_a_part_in_its_own_prediction_or_in_that_of_the_fold_that_is_judged() -> None:
    fold = np.arange(20) % 4

    def fit(rows: np.ndarray) -> Predict:
        used = float(sum(10**f for f in set(fold[rows].tolist())))
        return lambda _, inside: np.full((1, len(inside), 1), used)

    used = double_crossfit(fit, fold, lambda predicted, _: predicted * 0)
    for f in range(4):
        for row in range(20):
            kept = {g for g in range(4) if f"{int(used[f, row, 0]):04d}"[3 - g] == "1"}
            assert kept == set(range(4)) - {f, int(fold[row])}


def test_the_saturated_baseline_holds_the_labels_but_no_target() -> None:
    acts = planted(3, n_cases=40)
    outcomes = read_outcomes(acts.table)
    design = saturated_outputs(outcomes, acts.table)
    assert np.isfinite(design).all()
    moved = acts.table.assign(y_gen="A")
    moved.attrs = acts.table.attrs
    np.testing.assert_array_equal(design, saturated_outputs(read_outcomes(moved), moved))
    basis = splines(np.linspace(-20, 20, 50))
    assert (basis.sum(1) <= 1 + 1e-12).all()
    np.testing.assert_array_equal(basis[0], basis[1])  # beyond the last knot


def test_where_the_labels_part_the_residual_sides_with_the_stated_one_only_where_its_push_is_seen() -> None:
    shown = sides_with(planted(4)).set_index(["persona", "layer", "side"])
    assert shown.loc[("all", 1, "stated"), "low"] > shown.loc[("all", 1, "stated"), "chance"]
    assert shown.loc[("all", 1, "stated"), "value"] > shown.loc[("all", 1, "stated"), "baseline"] + 0.2
    hidden = sides_with(planted(4, shown=0.0, noise=0.05)).set_index(["persona", "layer", "side"])
    assert hidden.loc[("all", 1, "latent"), "value"] > 0.6  # what is readable of the stated label is the latent one
    assert hidden.loc[("all", 1, "latent"), "value"] > hidden.loc[("all", 1, "stated"), "value"]
    shares = shown.reset_index().groupby(["persona", "layer"])[["value", "chance"]].sum(min_count=3)
    assert np.allclose(shares.dropna(), 1.0)
    assert shown.loc[("none", 1, "stated"), "n"] == 0
    assert "differ in no cell" in shown.loc[("none", 1, "stated"), "note"]


def test_who_changes_is_told_from_the_base_alone() -> None:
    acts = planted(6)
    found = who_changes(acts, acts.table, base="none", settings=FEW)
    nurse = found[(found["persona"] == "nurse") & (found["group"] == "agree")].set_index("quantity")
    rate = nurse.loc["rate"]
    assert 0.15 < rate["value"] < 0.45
    assert rate["low"] < rate["value"] < rate["high"]
    assert rate["changed"] == round(rate["value"] * rate["n"])
    # The push itself is drawn anew for the persona: nothing before it can tell.
    assert (nurse.loc["base activations", "p_adjusted"] > 0.05).all()
    moved = acts.table.copy()
    own = moved["persona"] == "nurse"
    moved.loc[own, [f"logp_{label}" for label in "ABC"]] -= 1.0  # label mass under the persona: an effect of it
    moved.loc[own, "label_mass"] = 0.2
    again = who_changes(acts, moved, base="none", settings=FEW)
    pd.testing.assert_frame_equal(found, again)


def test_a_base_whose_residual_foretells_the_change_is_found_to() -> None:
    acts = planted(7)
    none = np.flatnonzero(acts.table["persona"] == "none")
    nurse = np.flatnonzero(acts.table["persona"] == "nurse")
    parted = (acts.table["y_gen"].to_numpy() != _latent(acts.table))[nurse]
    read = acts.read

    def foretold(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        places, x = read(layer, position)
        x = x.copy()
        x[none, 3] += 3.0 * parted * (layer == 1)
        return places, x

    found = who_changes(replace(acts, read=foretold), acts.table, base="none", settings=FEW)
    own = found[(found["persona"] == "nurse") & (found["quantity"] == "base activations")].set_index("layer")
    assert own.loc[1, "p_adjusted"] <= 0.05
    assert own.loc[0, "p_adjusted"] > 0.05


def _latent(table: pd.DataFrame) -> np.ndarray:
    return np.array(list("ABC"))[table[[f"logp_{label}" for label in "ABC"]].to_numpy().argmax(1)]
