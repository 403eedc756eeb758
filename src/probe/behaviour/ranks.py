"""Judges' rankings and preferences. Knows ranks per case and judge; knows no answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from probe.behaviour.intervals import mean
from probe.behaviour.kappa import kappa_of
from probe.behaviour.significance import holm, paired_t
from probe.values import ALL, ProbeError
from probe.values.nearest import nearest

BANDS = (0.0, 50.0, 75.0, 100.0)
"""Edges of the confidence bands, each [a, b), the last one closed."""

TIE = "tie"
"""The preference of a judge who ranks two personas first."""


def rankings(judged: pd.DataFrame, base: str | None = None) -> pd.DataFrame:
    """Mean reciprocal rank of each persona, mean over cases of 1 / rank, and its paired difference from ``base``.

    ``judged`` has one row per case, persona and (where there are several) judge, with ``rank`` from 1 (best).
    Reciprocal ranks are averaged over judges within a case first: the unit is the case. Columns: persona, value, low,
    high, n, difference, difference_low, difference_high, p (paired t over cases, which takes the differences of
    reciprocal ranks as they are), p_holm (over the personas), test.

    Raises:
        ProbeError: a column is missing, a rank is below 1, or nobody ranked ``base``.
    """
    _require(judged, ("case", "persona", "rank"))
    if not (judged["rank"] >= 1).all():
        found = "an empty one" if judged["rank"].isna().any() else judged["rank"].min()
        raise ProbeError(f"ranks count from 1, found {found}; the best answer has rank 1, one without a rank no row")
    rater = [*(["judge"] if "judge" in judged else []), "case", "persona"]
    if (twice := judged.duplicated(rater)).any():
        who = " / ".join(map(str, judged.loc[twice, rater].iloc[0]))
        raise ProbeError(f"a judge ranks a persona once per case; {who} stands twice. Name judges in the column judge")
    reciprocal = (1 / judged["rank"]).groupby([judged["case"], judged["persona"]], sort=False).mean().unstack()
    if base is not None and base not in reciprocal:
        remedy = nearest(base, tuple(map(str, reciprocal.columns)), "persona")
        raise ProbeError(f"the base persona must be ranked, found no {base!r}. {remedy}")
    rows = []
    for persona in judged["persona"].drop_duplicates():
        own = mean(reciprocal[persona].to_numpy(), reciprocal.index.to_numpy())
        row = {"persona": persona, "value": own.value, "low": own.low, "high": own.high, "n": own.n}
        if base is not None and persona != base:
            shift = (reciprocal[persona] - reciprocal[base]).dropna()
            paired = mean(shift.to_numpy(), shift.index.to_numpy())
            p, test = paired_t(np.asarray(shift, dtype=float))
            row |= {"difference": paired.value, "difference_low": paired.low, "difference_high": paired.high}
            row |= {"p": p, "test": test}
        rows.append(row)
    names = ["persona", "value", "low", "high", "n", "difference", "difference_low", "difference_high", "p", "test"]
    result = pd.DataFrame(rows, columns=names)
    tested, numbers = result["p"].notna(), ["difference", "difference_low", "difference_high", "p"]
    result[numbers] = result[numbers].astype(float)
    result.insert(names.index("p") + 1, "p_holm", np.nan)
    result.loc[tested, "p_holm"] = holm(result.loc[tested, "p"].tolist())
    return result


def agreement(judged: pd.DataFrame, bands: Sequence[float] = BANDS) -> pd.DataFrame:
    """Cohen's kappa of every two judges' preferences, over all cases and by band of their mean confidence.

    A judge's preference on a case is the column ``preference`` (the same in all rows of judge and case), else the
    persona with the best rank (a tie is a preference of its own). ``confidence`` (0-100) is per judge and case;
    without it there is the band ``all`` only. Columns: judge_a, judge_b, band, low_edge, high_edge, kappa, low, high,
    n, observed (share of equal preferences), note.

    Raises:
        ProbeError: a column is missing, a judge has two preferences or confidences on a case, or a confidence lies
            outside the bands.
    """
    _require(judged, ("judge", "case", "persona", "rank") if "preference" not in judged else ("judge", "case"))
    said = _preferences(judged)
    rows = []
    for first, second in combinations(dict.fromkeys(said["judge"]), 2):
        both = said[said["judge"] == first].merge(said[said["judge"] == second], on="case", suffixes=("_a", "_b"))
        sure = (both["confidence_a"] + both["confidence_b"]) / 2
        edges = list(pairwise(bands)) if sure.notna().any() else []
        parts = [((bands[0], bands[-1]), ALL, both)]
        for low, high in edges:
            inside = (sure >= low) & ((sure < high) | ((high == bands[-1]) & (sure == high)))
            parts.append(((low, high), f"{low:g}-{high:g}", both[inside]))
        for ends, band, part in parts:
            row = {"judge_a": first, "judge_b": second, "band": band, "low_edge": ends[0], "high_edge": ends[1]}
            rows.append(row | _kappa(part))
    names = ["judge_a", "judge_b", "band", "low_edge", "high_edge", "kappa", "low", "high", "n", "observed", "note"]
    return pd.DataFrame(rows, columns=names)


def _preferences(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per judge and case: judge, case, preference, confidence (NaN without one)."""
    if "preference" in judged:
        told = judged[judged["preference"].notna()]
        told = told.assign(preference=told["preference"].astype(str))
    else:
        best = judged.groupby(["judge", "case"])["rank"].transform("min")
        first = judged[judged["rank"] == best]
        alone = ~first.duplicated(["judge", "case"], keep=False)
        told = first.assign(preference=first["persona"].astype(str).where(alone, TIE))
    told = told.assign(confidence=told["confidence"].astype(float) if "confidence" in told else np.nan)
    told = told[["judge", "case", "preference", "confidence"]].drop_duplicates()
    if (twice := told.duplicated(["judge", "case"])).any():
        row = told[twice].iloc[0]
        raise ProbeError(f"a judge has one preference and confidence per case; {row['judge']} on {row['case']} has two")
    if not told["confidence"].dropna().between(0, 100).all():
        raise ProbeError(f"a confidence lies between 0 and 100, found {told['confidence'].max():g}")
    return told


def _kappa(both: pd.DataFrame) -> dict[str, object]:
    if both.empty:
        return {"n": 0, "note": "undefined: no case in this band"}
    names = sorted({*both["preference_a"], *both["preference_b"]})
    first, second = (both[f"preference_{side}"].map(names.index).to_numpy() for side in ("a", "b"))
    found = kappa_of(first, second, both["case"].to_numpy())
    row: dict[str, object] = {"kappa": found.value, "low": found.low, "high": found.high, "n": found.n}
    return row | {"observed": found.counts["observed"], "note": found.note}


def _require(judged: pd.DataFrame, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in judged]:
        raise ProbeError(f"rankings need the columns {', '.join(names)}; missing: {', '.join(missing)}")
