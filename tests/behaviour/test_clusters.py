"""Rows of one case are not new cases: every interval of 40 cases stays that of 40 cases when each stands six times."""

import numpy as np
import pandas as pd
import pytest

from probe.behaviour import metrics, read_outcomes, reliability, risk


def cells(n_cases, copies, seed=0):
    """Random answers to ``n_cases`` cases, the same under each of ``copies`` conditions."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"case": [f"case-{i}" for i in range(n_cases)], "persona": "none"})
    table["target"], table["y_gen"] = rng.choice(list("ABC"), n_cases), rng.choice(list("ABC"), n_cases)
    table[["logp_A", "logp_B", "logp_C"]] = np.log(rng.dirichlet([1, 1, 1], n_cases))
    return pd.concat([table.assign(condition=f"c{k}") for k in range(copies)], ignore_index=True)


@pytest.mark.parametrize(
    "metric", ["risk_sensitivity", "risk_sensitivity_latent", "risk_log_ratio", "over_triage_rate", "accuracy"]
)
def test_repeated_cases_keep_the_interval_of_the_cases(metric):
    def width(table):
        row = metrics(table).set_index("metric").loc[metric]
        low, high = np.log([row["low"], row["high"]]) if "sensitivity" in metric else (row["low"], row["high"])
        return high - low

    once = width(cells(40, 1))
    assert width(cells(40, 6)) == pytest.approx(once, rel=0.06)
    assert width(cells(240, 1)) < 0.6 * once  # the control: new cases do narrow it


def test_the_smoothed_log_ratio_keeps_it_exactly():
    rows = [metrics(cells(40, k)).set_index("metric").loc["risk_log_ratio"] for k in (1, 6)]
    assert rows[1]["high"] - rows[1]["low"] == pytest.approx(rows[0]["high"] - rows[0]["low"])


def test_bins_of_the_reliability_diagram_keep_their_width():
    once, often, more = (reliability(cells(*shape)) for shape in ((40, 1), (40, 6), (240, 1)))
    assert often["count"].tolist() == (6 * once["count"]).tolist()
    assert (often["high"] - often["low"]).to_numpy() == pytest.approx((once["high"] - once["low"]).to_numpy(), rel=0.12)
    assert (more["high"] - more["low"]).mean() < 0.7 * (once["high"] - once["low"]).mean()


def test_the_interval_of_the_log_ratio_covers_where_conditions_of_a_case_agree():
    rng = np.random.default_rng(1)
    truth, inside = np.log(0.24 / 0.36), []
    for _ in range(300):
        case_error = rng.choice([-1, 0, 1], 100, p=[0.36, 0.40, 0.24])
        target = np.where(case_error > 0, "A", "C")
        given = np.where(case_error == 0, target, np.where(case_error > 0, "C", "A"))
        table = pd.DataFrame({"case": np.arange(100), "persona": "none", "target": target, "y_gen": given})
        table = pd.concat([table.assign(condition=str(k)) for k in range(4)], ignore_index=True)
        table.attrs = {"options": ["A", "B", "C"]}
        outcomes = read_outcomes(table)
        ratio = risk.log_ratio(outcomes, outcomes.stated, risk.high_vs_rest)
        inside.append(ratio.low <= truth <= ratio.high)
    assert 0.92 <= np.mean(inside) <= 0.99
