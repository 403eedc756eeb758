"""Effects in several models that read the same cases: intervals cover, flips are marked, ranks agree or not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from probe.behaviour import compare
from probe.behaviour.across_models import (
    across_models,
    case_differences,
    concordance,
    covariance_of_means,
    model_effects,
    random_effects,
    rank_agreement,
)
from probe.values import ProbeError

N_CASES = 40


def series(values: np.ndarray) -> pd.Series:
    return pd.Series(values, index=[f"c{i}" for i in range(len(values))])


def differences(by_persona: dict[str, np.ndarray]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"case": [f"c{i}" for i in range(len(x))], "difference": x}).assign(
            metric="accuracy", persona=name, base="none", stratum="s"
        )
        for name, x in by_persona.items()
    ]
    return pd.concat(parts, ignore_index=True)


def drawn(rng: np.random.Generator, k: int, *, tau: float, shared: float, own: float) -> dict[str, pd.DataFrame]:
    """k models with mean effect .3; cases differ by ``shared`` in all models alike and by ``own`` in each."""
    common = rng.normal(0, shared, N_CASES)
    effects = 0.3 + rng.normal(0, tau, k)
    return {f"m{i}": differences({"p": e + common + rng.normal(0, own, N_CASES)}) for i, e in enumerate(effects)}


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_intervals_cover_where_the_models_share_their_cases_and_independent_ones_do_not(tau: float) -> None:
    rng, runs, ours, theirs = np.random.default_rng(1), 150, 0, 0
    for _ in range(runs):
        found = drawn(rng, 5, tau=tau, shared=1.5, own=0.5)
        row = across_models(found).query("stratum == 'all'").iloc[0]
        ours += bool(row["low"] <= 0.3 <= row["high"])
        each = [one["difference"] for one in found.values()]
        plain = combine_effects(np.array([x.mean() for x in each]), np.array([x.var() / len(x) for x in each]))
        low, high = plain.conf_int()[1]
        theirs += bool(low <= 0.3 <= high)
    assert ours / runs >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs)
    assert theirs / runs < 0.85


def test_with_nothing_shared_mean_and_spread_are_those_of_statsmodels() -> None:
    rng = np.random.default_rng(2)
    y, variance = rng.normal(0.2, 0.5, 6), rng.uniform(0.01, 0.05, 6)
    mu, se, tau = random_effects(y, np.diag(variance))
    theirs = combine_effects(y, variance, method_re="pm", atol=1e-12)
    assert mu == pytest.approx(theirs.mean_effect_re, abs=1e-6)
    assert se == pytest.approx(theirs.sd_eff_w_re, abs=1e-6)
    assert tau**2 == pytest.approx(theirs.tau2, abs=1e-6)
    equal = random_effects(np.full(6, 0.2), np.diag(variance))  # no more spread than sampling: no tau
    assert equal[2] == 0.0


def test_a_covariance_of_means_is_that_of_the_cases_two_models_share() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(0, 1, 60)
    one, two = series(common + rng.normal(0, 0.1, 60)), series(common + rng.normal(0, 0.1, 60))
    s = covariance_of_means([one, two.iloc[30:], two.rename(lambda name: "other " + name)])
    assert s[0, 0] == pytest.approx(one.var() / 60)
    assert s[1, 1] == pytest.approx(two.iloc[30:].var() / 30)
    assert s[0, 1] > 0.5 * s[0, 0]
    assert s[0, 2] == 0.0


def test_flips_are_effects_of_either_sign_beyond_their_own_noise() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.1, (3, N_CASES))
    found = {
        "a": differences({"p": 0.5 + noise[0], "q": 0.5 + noise[0]}),
        "b": differences({"p": -0.5 + noise[1], "q": 0.4 + noise[1]}),
        "c": differences({"p": 0.001 + noise[2], "q": -0.001 + noise[2]}),
    }
    table = across_models(found).query("stratum == 'all'").set_index("persona")
    assert (table.loc["p", "up"], table.loc["p", "down"], table.loc["p", "flips"]) == (1, 1, True)
    assert (table.loc["q", "up"], table.loc["q", "down"], table.loc["q", "flips"]) == (2, 0, False)
    assert table.loc["p", "tau"] > 0.3
    assert table.loc["p", "next_low"] < table.loc["p", "low"]


def test_one_model_has_no_mean_two_no_next_one_and_a_model_without_any_difference_is_no_certainty() -> None:
    rng = np.random.default_rng(5)
    x = 0.3 + rng.normal(0, 0.2, N_CASES)
    assert "one model" in across_models({"a": differences({"p": x})})["note"].iloc[0]
    two = across_models({"a": differences({"p": x}), "b": differences({"p": x + 0.1})}).iloc[0]
    assert np.isfinite(two["value"])
    assert np.isnan(two["next_low"])
    still = across_models({"a": differences({"p": x}), "b": differences({"p": 0 * x}), "c": differences({"p": x})})
    assert still["value"].iloc[0] > 0.05  # the mean is not that of the model in which nothing moved


def test_concordance_is_that_of_friedman_and_tells_agreement_from_chance() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(0, 1, (4, 7))
    ranks = np.apply_along_axis(stats.rankdata, 1, values)
    chi2 = stats.friedmanchisquare(*values.T).statistic
    assert concordance(ranks) == pytest.approx(chi2 / (4 * 6))
    assert concordance(np.ones((3, 5))) == 0.0
    names = [f"p{i}" for i in range(6)]
    same = {
        f"m{k}": differences({name: 0.2 * i + rng.normal(0, 0.1, N_CASES) for i, name in enumerate(names)})
        for k in range(4)
    }
    chance = {f"m{k}": differences({name: rng.normal(0, 1, N_CASES) for name in names}) for k in range(4)}
    agreed, not_agreed = (rank_agreement(model_effects(one)).iloc[0] for one in (same, chance))
    assert agreed["w"] > 0.9 and agreed["p"] < 0.01 and agreed["tau_b"] > 0.8
    assert not_agreed["p"] > 0.05
    few = rank_agreement(model_effects({"a": differences({"p": np.ones(3)})}))
    assert np.isnan(few["w"].iloc[0]) and "three personas" in few["note"].iloc[0]


def table_of(rng: np.random.Generator) -> pd.DataFrame:
    rows = [
        {
            "case": f"c{i}",
            "persona": persona,
            "stratum": "odd" if i % 2 else "even",
            "target": "A",
            "rotation": rotation,
            "y_gen": rng.choice(list("AB")),
            "y_latent": rng.choice(list("AB")),
        }
        for i in range(30)
        for persona in ("none", "nurse")
        for rotation in (0, 1)
    ]
    table = pd.DataFrame(rows)
    table.attrs["options"] = ["A", "B"]
    return table


def test_differences_by_case_average_to_those_of_compare() -> None:
    table = table_of(np.random.default_rng(7))
    found = case_differences(table, metrics=["accuracy", "consistency_strict", "brier"])
    assert set(found["metric"]) == {"accuracy", "consistency_strict"}  # no log-probabilities, no Brier score
    whole = compare(table).set_index(["metric", "stratum"])["difference"]
    own = model_effects({"m": found}).set_index(["metric", "stratum"])["difference"]
    for key in own.index:
        assert own[key] == pytest.approx(whole[key])
    with pytest.raises(ProbeError, match="'accuracyy'"):
        case_differences(table, metrics=["accuracyy"])
