"""One persona effect in several models: random effects, sign flips, and whether models rank personas alike. Knows
paired differences by case; knows no store.

The models of a comparison read the same cases, so the sampling errors of their effects are correlated: a case that is
easy to move is so in all of them. The summary knows these covariances; one that takes the models for independent
samples (DerSimonian & Laird 1986, and every forest plot made with it) gives intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from scipy.optimize import brentq

from probe.behaviour.comparisons import bases_of
from probe.behaviour.contrasts import CONTRASTS
from probe.behaviour.outcomes import read_outcomes
from probe.behaviour.paired_cells import paired_cells, pairs_by_stratum
from probe.values import ALL, ProbeError

EFFECT_COLUMNS = ("model", "metric", "persona", "base", "stratum", "difference", "low", "high", "se", "n", "rank")
SUMMARY_COLUMNS = (
    *("metric", "persona", "base", "stratum", "models", "value", "low", "high", "tau", "next_low", "next_high"),
    *("up", "down", "flips", "method", "note"),
)
AGREEMENT_COLUMNS = ("metric", "base", "stratum", "models", "personas", "w", "p", "tau_b", "note")

PERMUTATIONS = 9999


def case_differences(
    table: pd.DataFrame,
    base: str | Sequence[str] = "none",
    *,
    metrics: Sequence[str],
    controls: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
) -> pd.DataFrame:
    """How far each persona moves each metric from a base in each case: the mean over the case's pairs.

    Pairs and metrics are those of :func:`probe.behaviour.compare`. Columns: metric, persona, base, stratum (the case's
    own), case, difference. A metric whose columns or meaning the table lacks has no row.

    Raises:
        ProbeError: a metric is unknown, or as ``compare``.
    """
    known = {contrast.name: contrast for contrast in CONTRASTS}
    if unknown := [name for name in metrics if name not in known]:
        raise ProbeError(f"a metric that is compared across models is one of {', '.join(known)}; found {unknown[0]!r}")
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    cells = paired_cells(table, outcomes)
    asked = [
        known[name]
        for name in metrics
        if set(known[name].columns) <= outcomes.told and not outcomes.lacks(known[name].need)
    ]
    parts = []
    for name, members in bases_of(table, base, outcomes, controls).items():
        for persona in (one for one in outcomes.personas if one not in members):
            _, pairs = next(pairs_by_stratum(outcomes, cells, persona, members))
            for contrast in asked:
                ours, theirs = pairs.differences(contrast.score(outcomes))
                rows = pd.DataFrame({"case": outcomes.case[pairs.ours], "difference": ours - theirs})
                rows["stratum"] = outcomes.stratum[pairs.ours]
                by_case = rows.dropna().groupby("case", sort=False).agg({"stratum": "first", "difference": "mean"})
                parts.append(by_case.reset_index().assign(metric=contrast.name, persona=persona, base=name))
    columns = ["metric", "persona", "base", "stratum", "case", "difference"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def model_effects(differences: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The effect of every persona in every model, pooled and by stratum.

    ``differences`` are those of :func:`case_differences` by model. Columns: :data:`EFFECT_COLUMNS`; the interval is t
    over cases at 95 %, ``rank`` that of the persona among those of the model, 1 for the largest difference.
    """
    rows = []
    for model, found in differences.items():
        for key, part in _by_effect(found):
            x = part["difference"].to_numpy(float)
            se = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else np.nan
            half = float(stats.t.ppf(0.975, len(x) - 1)) * se if len(x) > 1 else np.nan
            mean = float(x.mean())
            rows.append(
                {"model": model}
                | key
                | {"difference": mean, "low": mean - half, "high": mean + half}
                | {"se": se, "n": len(x)}
            )
    table = pd.DataFrame(rows, columns=list(EFFECT_COLUMNS[:-1]))
    by = ["model", "metric", "base", "stratum"]
    table["rank"] = table.groupby(by, sort=False)["difference"].rank(ascending=False, method="average")
    return table


def across_models(differences: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every persona effect as the mean over models like these, by random effects.

    Model k's effect is y_k = mu + m_k + e_k: m_k varies between models with standard deviation ``tau``, e_k between
    cases, with the covariance S over cases that the models share. mu is the mean with weights 1 / (S_kk + tau^2) and
    the variance that S + tau^2 I gives it; tau is that at which the weighted squares come to their expectation (Paule &
    Mandel 1982, their expectation taken under S). ``low``, ``high``: 95 % of mu, t with K - 1 degrees of freedom for K
    ``models``; ``next_low``, ``next_high``: 95 % of the effect in one more model (t with K - 2; Higgins, Thompson &
    Spiegelhalter 2009).

    ``up``, ``down``: models whose own interval lies above, below 0; ``flips`` where there are both. A model in which
    nothing varies between cases is in the mean with the variance that one case of another sign would show.

    Columns: :data:`SUMMARY_COLUMNS`. With one model there is nothing to sum up.
    """
    effects = model_effects(differences)
    by_model = {model: dict(_keyed(found)) for model, found in differences.items()}
    rows = []
    for key, part in effects.groupby(["metric", "persona", "base", "stratum"], sort=False):
        series = [by_model[model][key] for model in part["model"]]
        up, down = int((part["low"] > 0).sum()), int((part["high"] < 0).sum())
        row = dict(zip(("metric", "persona", "base", "stratum"), key, strict=True))
        row |= {"models": len(part), "up": up, "down": down, "flips": bool(up and down), "method": METHOD, "note": ""}
        rows.append(row | _summary(series))
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


METHOD = "random effects, covariances over shared cases, tau by Paule and Mandel"


def rank_agreement(effects: pd.DataFrame, rng: np.random.Generator | None = None) -> pd.DataFrame:
    """Whether models rank the personas alike, by metric, base and stratum.

    ``w`` is Kendall's coefficient of concordance of the ranks of :func:`model_effects` (0: none, 1: the same order in
    every model), ``p`` from permutations of the personas within models, ``tau_b`` the mean over pairs of models of
    Kendall's tau-b. Personas that some model lacks are left out.
    """
    rng = rng or np.random.default_rng(0)
    rows = []
    for key, part in effects.groupby(["metric", "base", "stratum"], sort=False):
        wide = part.pivot(index="model", columns="persona", values="difference").dropna(axis=1)
        row = dict(zip(("metric", "base", "stratum"), key, strict=True))
        row |= {"models": len(wide), "personas": wide.shape[1], "note": ""}
        if min(wide.shape) < 2 or wide.shape[1] < 3:
            rows.append(row | {"note": "undefined: ranks agree or not among two models and three personas at least"})
            continue
        ranks = np.apply_along_axis(stats.rankdata, 1, wide.to_numpy())
        if (ranks == ranks[:, :1]).all():
            rows.append(row | {"note": "undefined: no model tells any two personas apart"})
            continue
        drawn = [concordance(rng.permuted(ranks, axis=1)) for _ in range(PERMUTATIONS)]
        w = concordance(ranks)
        taus = [stats.kendalltau(one, other).statistic for one, other in combinations(wide.to_numpy(), 2)]
        p = (1 + int((np.array(drawn) >= w - 1e-12).sum())) / (1 + PERMUTATIONS)
        rows.append(row | {"w": w, "p": p, "tau_b": float(np.mean(taus))})
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))


def concordance(ranks: Float[np.ndarray, "model persona"]) -> float:
    """Kendall's W of ranks, corrected for ties; 0 where no model tells any two personas apart."""
    m, n = ranks.shape
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(r, return_counts=True)[1] for r in ranks))
    most = m**2 * (n**3 - n) - m * ties
    return 0.0 if most <= 0 else float(12 * ((ranks.sum(0) - m * (n + 1) / 2) ** 2).sum() / most)


def random_effects(y: Float[np.ndarray, " model"], s: Float[np.ndarray, "model model"]) -> tuple[float, float, float]:
    """mu, its standard error, and tau, of effects ``y`` whose sampling errors have the covariance ``s``."""
    own = np.diag(s)

    def excess(tau2: float) -> float:
        """The weighted squares about the weighted mean, less what is expected of them."""
        weight = 1 / (own + tau2)
        about = np.diag(weight) - np.outer(weight, weight) / weight.sum()
        return float(y @ about @ y - np.trace(about @ (s + tau2 * np.eye(len(y)))))

    most = float(((y - y.mean()) ** 2).sum()) + float(own.sum())
    while excess(most) > 0:
        most *= 2
    tau2 = 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, most))
    weight = 1 / (own + tau2)
    weight /= weight.sum()
    se = np.sqrt(weight @ (s + tau2 * np.eye(len(y))) @ weight)
    return float(weight @ y), float(se), float(np.sqrt(tau2))


def covariance_of_means(series: Sequence[pd.Series]) -> Float[np.ndarray, "model model"]:
    """The covariance of the means of series over cases, which some of them share; each is indexed by case.

    The variance of a series that does not vary is that of one case in it that differed by the largest difference there
    is in any, or by 1.
    """
    cases = pd.Index(sorted(set().union(*(one.index for one in series))))
    rows = np.zeros((len(series), len(cases)))
    for k, one in enumerate(series):
        rows[k, cases.get_indexer(one.index)] = (one.to_numpy() - one.mean()) / np.sqrt(len(one) * max(len(one) - 1, 1))
    found = rows @ rows.T
    largest = max((float(one.abs().max()) for one in series), default=0.0) or 1.0
    for k, one in enumerate(series):
        floor = (largest / len(one)) ** 2 if len(one) else np.inf
        if found[k, k] < 1e-12 * max(floor, 1e-300):
            found[k, k] = floor
    return np.asarray(found)


def _summary(series: Sequence[pd.Series]) -> dict[str, object]:
    if len(series) < 2:
        return {"note": "undefined: one model alone has this effect"}
    y = np.array([one.mean() for one in series])
    mu, se, tau = random_effects(y, covariance_of_means(series))
    half = float(stats.t.ppf(0.975, len(y) - 1)) * se
    row: dict[str, object] = {"value": mu, "low": mu - half, "high": mu + half, "tau": tau}
    if len(y) < 3:
        return row | {"note": "two models say little of their spread, and nothing of a next one"}
    wide = float(stats.t.ppf(0.975, len(y) - 2)) * float(np.hypot(se, tau))
    return row | {"next_low": mu - wide, "next_high": mu + wide}


def _by_effect(found: pd.DataFrame) -> list[tuple[dict[str, object], pd.DataFrame]]:
    """The cases of every metric, persona and base, pooled and by stratum where there are several."""
    parts: list[tuple[dict[str, object], pd.DataFrame]] = []
    for key, part in found.groupby(["metric", "persona", "base"], sort=False):
        named = dict(zip(("metric", "persona", "base"), key, strict=True))
        parts.append((named | {"stratum": ALL}, part))
        strata = part.groupby("stratum", sort=False)
        parts += [(named | {"stratum": name}, own) for name, own in strata] if len(strata) > 1 else []
    return parts


def _keyed(found: pd.DataFrame) -> list[tuple[tuple[object, ...], pd.Series]]:
    return [
        ((key["metric"], key["persona"], key["base"], key["stratum"]), part.set_index("case")["difference"])
        for key, part in _by_effect(found)
    ]
