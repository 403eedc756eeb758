"""Does a persona move a metric further than rewording a neutral prompt does? Knows wordings, cases and scores; knows no
pair of arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from probe.behaviour.contrasts import CONTRASTS, FAMILY
from probe.behaviour.controls import control_personas
from probe.behaviour.measures import split_by_columns
from probe.behaviour.outcomes import Outcomes, read_outcomes
from probe.behaviour.significance import benjamini_hochberg, holm
from probe.values import ALL, ProbeError
from probe.values.nearest import nearest

COLUMNS = (
    *("metric", "persona", "stratum", "theta", "controls_mean", "effect", "low", "high", "t", "df", "p", "p_holm"),
    *("p_bh", "floor_low", "floor_high", "floor_half", "sd", "k", "m", "cases", "p_rank", "p_rank_min"),
    *("outside", "beyond_sd", "note"),
)


def noise_floor(
    table: pd.DataFrame,
    *,
    controls: Sequence[str] | None = None,
    metrics: Sequence[str] = FAMILY,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
) -> pd.DataFrame:
    """Every persona's distance from the neutral control wordings, in units of how far those lie from each other.

    ``theta`` is the mean of the metric over the persona's ``m`` wordings, ``effect`` its distance from the mean of the
    ``k`` control wordings, whose observed standard deviation is ``sd``:

        t = effect / (sd sqrt(1 / m + 1 / k)),  k - 1 degrees of freedom.

    ``low`` and ``high`` are the 95 % interval of the effect; ``floor_half`` is the largest |effect| that is not
    significant at .05, ``floor_low`` and ``floor_high`` the range of the controls around their mean. A wording's value
    is its mean over cases (over the conditions of a case first); only cases that all these wordings have count
    (``cases``). The persona's wordings are taken to vary as the controls do.

    ``outside`` (of the range of the controls) and ``beyond_sd`` (|effect| > sd, "exceeds the spread") are descriptive:
    of null personas with one wording the first flags 2 / (k + 1), the second a third. ``p_rank`` is the rank of the
    persona among itself and the controls by distance from their common mean; it cannot go below ``p_rank_min`` =
    1 / (k + 1), and is exact only for one wording. ``p_holm`` and ``p_bh`` are over the whole table.

    Raises:
        ProbeError: there are no control wordings, or ``metrics`` names an unknown one.
    """
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    neutral = control_personas(table, controls)
    if not neutral:
        raise ProbeError(
            "a noise floor needs control wordings, and the table has none; give their persona the role control, or "
            "pass controls="
        )
    known = {contrast.name: contrast for contrast in CONTRASTS}
    for name in metrics:
        if name not in known:
            raise ProbeError(f"{name!r} has no noise floor. {nearest(name, tuple(known), 'metric')}")
    present, absent = split_by_columns([known[name] for name in metrics], outcomes)
    rows = []
    for contrast in present:
        if not outcomes.lacks(contrast.need):
            values = by_wording(outcomes, contrast.score(outcomes))
            for row in _of_metric(values, outcomes, neutral):
                rows.append({"metric": contrast.name, **row})
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    tested = result["p"].notna()
    raw = result.loc[tested, "p"].tolist()
    for name, adjust in (("p_holm", holm), ("p_bh", benjamini_hochberg)):
        result[name] = np.nan
        result.loc[tested, name] = adjust(raw)
    result.attrs = {"controls": list(neutral), "absent": list(absent)}
    return result


def by_wording(outcomes: Outcomes, score: Float[np.ndarray, " row"]) -> pd.DataFrame:
    """Mean score of each wording (persona, wording) on each case, over the conditions of the cell; NaN without one."""
    frame = pd.DataFrame({"persona": outcomes.persona, "wording": outcomes.wording, "case": outcomes.case})
    return frame.assign(score=score).groupby(["persona", "wording", "case"], sort=False)["score"].mean().unstack("case")


def _of_metric(values: pd.DataFrame, outcomes: Outcomes, neutral: tuple[str, ...]) -> list[dict[str, object]]:
    stratum_of = dict(zip(outcomes.case, outcomes.stratum, strict=True))
    persona_of = values.index.get_level_values("persona")
    strata = np.array([stratum_of[case] for case in values.columns], dtype=object)
    floor, rows = values.to_numpy()[persona_of.isin(list(neutral))], []
    for persona in outcomes.personas:
        if persona in neutral:
            continue
        own = values.to_numpy()[persona_of == persona]
        for stratum in outcomes.strata:
            inside = np.full(len(strata), True) if stratum == ALL else strata == stratum
            inside &= ~np.isnan(own).any(0) & ~np.isnan(floor).any(0)
            row: dict[str, object] = {"persona": persona, "stratum": stratum, "cases": int(inside.sum())}
            row |= {"k": len(floor), "m": len(own), "note": "undefined: no case that all wordings have"}
            if inside.any():
                row |= floor_test(own[:, inside].mean(1), floor[:, inside].mean(1))
            rows.append(row)
    return rows


def floor_test(own: Float[np.ndarray, " wording"], controls: Float[np.ndarray, " control"]) -> dict[str, object]:
    """The test of :func:`noise_floor` from the values of the persona's wordings and of the control wordings."""
    theta, centre, m, k = float(own.mean()), float(controls.mean()), len(own), len(controls)
    effect = theta - centre
    row: dict[str, object] = {"theta": theta, "controls_mean": centre, "effect": effect, "k": k, "m": m, "df": k - 1}
    if k < 2:
        return row | {"note": "undefined: one control wording has no spread"}
    together = np.append(controls, theta) - np.append(controls, theta).mean()
    reached = int((np.abs(together[:-1]) >= np.abs(together[-1]) - 1e-12).sum())
    row |= {"floor_low": float(controls.min() - centre), "floor_high": float(controls.max() - centre)}
    row |= {"outside": bool(theta < controls.min() or theta > controls.max()), "sd": float(controls.std(ddof=1))}
    row |= {"beyond_sd": bool(abs(effect) > controls.std(ddof=1))}
    row |= {"p_rank": (1 + reached) / (k + 1), "p_rank_min": 1 / (k + 1)}
    error = float(controls.std(ddof=1)) * np.sqrt(1 / m + 1 / k)
    if error <= 1e-12 * max(1.0, abs(centre)):
        return row | {"note": "undefined: the control wordings do not differ at all"}
    half = float(stats.t.ppf(0.975, k - 1) * error)
    p = float(2 * stats.t.sf(abs(effect / error), k - 1))
    row |= {"low": effect - half, "high": effect + half, "floor_half": half}
    return row | {"t": effect / error, "p": p, "note": ""}
