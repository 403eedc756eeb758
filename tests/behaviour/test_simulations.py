"""Simulated studies with known truth: intervals cover, tests reject seldom without an effect.

Each simulation runs small in ``make test`` and with 4,000 replicates of 200 cases in ``make test-slow``, which prints
what docs/validity.md reports (``pytest -m slow -s tests/behaviour/test_simulations.py``).
"""

import numpy as np
import pytest

from probe.behaviour import ece, holm, paired_difference
from probe.behaviour.calibration import debiased_and_left_out, debiased_ece_squared, jackknifed
from probe.behaviour.intervals import mean, proportion
from probe.behaviour.noise import floor_test
from tests.behaviour.simulated_worlds import BINARY, METRICS, Arm, draw_labels, scores_of

CASES = 200
SIZES = [250, pytest.param(4000, marks=pytest.mark.slow)]
EFFECTS = (Arm(0.0, 0.0, 0.1), Arm(0.8, 0.5, 0.3))
SAME = (Arm(0.4, 0.3, 0.2), Arm(0.4, 0.3, 0.2))


def near(rate, low, high, replicates):
    """Is a simulated rate inside its band, give or take three Monte Carlo errors where there are few replicates?"""
    slack = 3 * np.sqrt(0.05 * 0.95 / replicates) if replicates < 4000 else 0.0
    return low - slack <= rate <= high + slack


def told(what, **rates):
    print(f"{what}: " + ", ".join(f"{name} {rate:.4f}" for name, rate in rates.items()))


def differences(replicates, arms, rng, rows=1, cases=CASES):
    """Per metric the paired difference of every replicate; drawn in blocks to spare memory."""
    found = {metric: [] for metric in METRICS}
    case = np.repeat(np.arange(cases), rows)
    for start in range(0, replicates, 250):
        ours, base = scores_of(arms[::-1], (min(250, replicates - start), cases), rng, rows)
        for metric in METRICS:
            pairs = zip(ours[metric], base[metric], strict=True)
            found[metric] += [paired_difference(a.ravel(), b.ravel(), case, metric in BINARY) for a, b in pairs]
    return found


def true_differences(arms, n, rng):
    ours, base = scores_of(arms[::-1], (1, n), rng)
    return {metric: float((ours[metric] - base[metric]).mean()) for metric in METRICS}


@pytest.mark.parametrize("replicates", SIZES)
@pytest.mark.parametrize(("cases", "rows"), [(200, 1), (200, 3), (60, 1)])
def test_intervals_of_paired_differences_cover_the_truth_with_one_row_per_case_and_with_clustered_rows(
    replicates, cases, rows
):
    rng = np.random.default_rng(rows)
    truth = true_differences(EFFECTS, 200_000 if replicates < 4000 else 1_000_000, rng)
    found = differences(replicates, EFFECTS, rng, rows, cases)
    covers = {m: np.mean([d.estimate.low <= truth[m] <= d.estimate.high for d in found[m]]) for m in METRICS}
    told(f"coverage of differences, {replicates} x {cases} cases x {rows} rows", **covers)
    assert all(near(rate, 0.93, 0.97 if cases == 200 else 1.0, replicates) for rate in covers.values()), covers
    wrong = [d.estimate.low <= truth["accuracy"] + 0.25 <= d.estimate.high for d in found["accuracy"]]
    assert np.mean(wrong) < 0.5  # the control: a wrong value is not covered


@pytest.mark.parametrize("replicates", SIZES)
@pytest.mark.parametrize("rows", [1, 3])
def test_without_an_effect_tests_reject_at_most_one_time_in_twenty(replicates, rows):
    found = differences(replicates, SAME, np.random.default_rng(10 + rows), rows)
    rejects = {m: np.mean([d.estimate.p < 0.05 for d in found[m]]) for m in METRICS}
    told(f"rejection without an effect, {replicates} x {CASES} cases x {rows} rows", **rejects)
    assert all(near(rate, 0.0, 0.057, replicates) for rate in rejects.values()), rejects


@pytest.mark.parametrize("replicates", [100, SIZES[1]])
def test_holm_keeps_the_familywise_error_of_twenty_tests_and_raw_p_values_do_not(replicates):
    rng, any_raw, any_holm = np.random.default_rng(20), [], []
    case = np.arange(CASES)
    for start in range(0, replicates, 250):
        arms = scores_of([Arm(0.4, 0.3, 0.2)] * 6, (min(250, replicates - start), CASES), rng)
        for r in range(len(arms[0]["accuracy"])):
            p = [
                paired_difference(arm[m][r, :, 0], arms[0][m][r, :, 0], case, m in BINARY).estimate.p
                for arm in arms[1:]
                for m in METRICS
            ]
            any_raw.append(min(p) < 0.05)
            any_holm.append(min(holm(p)) < 0.05)
    told(f"some rejection among 20 null tests, {replicates} studies", raw=np.mean(any_raw), holm=np.mean(any_holm))
    assert near(np.mean(any_holm), 0.0, 0.057, replicates)
    assert np.mean(any_raw) > 0.25


@pytest.mark.parametrize("replicates", SIZES)
@pytest.mark.parametrize("wordings", [1, 5])
def test_the_noise_floor_flags_one_null_persona_in_twenty_and_exceeding_the_spread_a_third(replicates, wordings):
    """Wordings move a logit by N(0, .25) and answers are drawn per case: all of it is the controls' spread."""
    rng, flags = np.random.default_rng(30 + wordings), []
    for _ in range(replicates):
        ease, shift = rng.normal(0.5, 1.5, CASES), rng.normal(0, 0.25, (30 + wordings, 1))
        values = (rng.random((30 + wordings, CASES)) < 1 / (1 + np.exp(-ease - shift))).mean(1)
        row = floor_test(values[:wordings], values[wordings:])
        flags.append((row["p"] < 0.05, row["p_rank"] < 0.05, row["outside"], row["beyond_sd"]))
    t, rank, outside, spread = np.mean(flags, axis=0)
    told(f"null personas flagged, {wordings} wordings", t=t, rank=rank, outside_range=outside, beyond_sd=spread)
    assert near(t, 0.035, 0.06, replicates)
    assert near(rank, 0.0, 0.057, replicates)
    assert spread > (0.25 if wordings == 1 else 0.02)


@pytest.mark.parametrize("replicates", SIZES)
def test_the_noise_floor_finds_a_persona_four_standard_deviations_away(replicates):
    rng = np.random.default_rng(40)
    found = [floor_test(c[:1] + 0.2, c[1:])["p"] < 0.05 for c in rng.normal(0.6, 0.05, (replicates, 31))]
    assert np.mean(found) > 0.9


@pytest.mark.parametrize("replicates", SIZES)
def test_debiased_ece_is_nil_for_a_calibrated_model_where_the_ece_itself_is_not(replicates):
    rng, case = np.random.default_rng(50), np.arange(CASES)
    confidence = rng.uniform(0.4, 1, (replicates, CASES))
    calibrated = (rng.random(confidence.shape) < confidence).astype(float)
    over = (rng.random(confidence.shape) < confidence - 0.15).astype(float)
    null = [debiased_ece_squared(c, y, case) for c, y in zip(confidence, calibrated, strict=True)]
    off = [debiased_ece_squared(c, y, case) for c, y in zip(confidence, over, strict=True)]
    values = np.array([estimate.value for estimate in null])
    rejects = np.mean([estimate.low > 0 for estimate in null])
    covers = np.mean([estimate.low <= 0.15**2 <= estimate.high for estimate in off])
    plain = np.mean([ece(c, y) for c, y in zip(confidence, calibrated, strict=True)])
    assert plain > 0.03  # the control
    told("debiased ECE^2", plain_ece=plain, null_mean=values.mean(), null_rejects=rejects, covers=covers)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(replicates)
    assert rejects <= 0.05
    assert near(covers, 0.93, 0.97, replicates)


@pytest.mark.parametrize("replicates", SIZES)
def test_the_difference_of_two_debiased_eces_covers_and_seldom_excludes_nothing_where_both_are_equal(replicates):
    """Two arms on the same cases, one of them .1 more overconfident than the other, or not."""
    rng, case = np.random.default_rng(55), np.arange(CASES)
    covers, rejects = [], []
    for _ in range(replicates):
        sure, luck = rng.uniform(0.5, 1, CASES), rng.random(CASES)
        one, two, same = (
            debiased_and_left_out(
                sure, (np.where(rng.random(CASES) < 0.5, luck, rng.random(CASES)) < sure - gap) * 1.0, case
            )
            for gap in (0.2, 0.1, 0.1)
        )
        apart, equal = (jackknifed(a[0] - b[0], a[1] - b[1], CASES, {}) for a, b in ((one, two), (two, same)))
        covers.append(apart.low <= 0.2**2 - 0.1**2 <= apart.high)
        rejects.append(not equal.low <= 0 <= equal.high)
    told("difference of debiased ECE^2", covers=np.mean(covers), rejects_equal=np.mean(rejects))
    assert near(np.mean(covers), 0.93, 0.97, replicates)
    assert near(np.mean(rejects), 0.0, 0.06, replicates)


@pytest.mark.parametrize("replicates", SIZES)
def test_labels_sampled_from_the_organisms_plan_cover_the_planned_value(replicates):
    """Cases are drawn from a pool and labels from their planned distributions, as a study draws both."""
    pool = planned_pool()
    rng, covers = np.random.default_rng(60), {}
    direct, reasoned, target = pool["direct"], pool["reasoned"], pool["target"]
    right = np.take_along_axis(reasoned, target[None, :, None], 2)[..., 0]
    agree = (direct * reasoned).sum(-1)
    brier = ((direct - np.eye(3)[target]) ** 2).sum(-1)
    truth = {"accuracy": right.mean(1), "consistency_strict": agree.mean(1), "brier": brier.mean(1)}
    inside = {f"{kind} {metric}": [] for kind in ("arm", "difference") for metric in truth}
    case = np.arange(CASES)
    for _ in range(replicates):
        drawn = rng.integers(0, len(target), CASES)
        stated, latent = (draw_labels(p[:, drawn], rng) for p in (reasoned, direct))
        scores = {
            "accuracy": (stated == target[drawn]).astype(float),
            "consistency_strict": (stated == latent).astype(float),
            "brier": brier[:, drawn],
        }
        for metric, (base, ours) in scores.items():
            single = (proportion if metric in BINARY else mean)(ours, case)
            pair = paired_difference(ours, base, case, metric in BINARY).estimate
            low, high = truth[metric]
            inside[f"arm {metric}"].append(single.low <= high <= single.high)
            inside[f"difference {metric}"].append(pair.low <= high - low <= pair.high)
    covers = {name: np.mean(values) for name, values in inside.items()}
    told(f"coverage of planned values, {replicates} x {CASES} cases of the organism", **covers)
    assert all(near(rate, 0.93, 0.97, replicates) for rate in covers.values()), covers


def planned_pool(n=1000):
    """Planned distributions [persona, case, label] of no persona and the cautious ED physician, and the references."""
    from probe.organism import generate_cases, planned

    cases = generate_cases(n // 2, seed=7)
    texts = (None, "You are a cautious ED physician.")
    plans = [[planned(text, case) for case in cases] for text in texts]
    return {
        "direct": np.array([[plan.direct for plan in row] for row in plans]),
        "reasoned": np.array([[plan.reasoned for plan in row] for row in plans]),
        "target": np.array(["ABC".index(case.target) for case in cases]),
    }
