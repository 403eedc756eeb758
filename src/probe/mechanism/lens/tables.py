"""What label contrasts say of personas, layer by layer, with intervals over cases. Knows reads; knows no residual."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from probe.behaviour import control_personas, pair_rows, read_outcomes
from probe.behaviour.columns import text_of
from probe.behaviour.controls import CONTROLS
from probe.mechanism.lens.head import contrast_names, likeliest
from probe.mechanism.lens.reads import LensReads
from probe.values import ALL

BOOTSTRAPS = 1000
"""Resamples of the cases behind every interval."""

LENS, READOUT = "lens", "held-out readout"

LEAST_CORRELATION = 0.7
"""Correlation over cells that the contrasts of lens and held-out readout must have for the lens to be believed: with it
they share about half of their variance. Contrasts and not labels: where one label prevails, these would say nothing."""

METHOD = "percentile bootstrap over cases"


@dataclass(frozen=True, eq=False)
class Resampled:
    """Means over cases, and the same means over resampled cases; ``n`` counts the cases."""

    mean: Float[np.ndarray, ...]
    draws: Float[np.ndarray, "draw ..."]
    n: int

    @cached_property
    def low(self) -> Float[np.ndarray, ...]:
        """2.5 % quantile of the resampled means."""
        return _quantile(self.draws, 0.025)

    @cached_property
    def high(self) -> Float[np.ndarray, ...]:
        """97.5 % quantile of the resampled means."""
        return _quantile(self.draws, 0.975)


def mean_over_cases(
    values: np.ndarray, case: np.ndarray, rng: np.random.Generator, draws: int = BOOTSTRAPS
) -> Resampled:
    """Mean over cases of each case's mean over its rows; ``values`` are ``[row, ...]``, NaN where undefined.

    A case enters whole. Below two cases the draws are NaN: one case has no interval.
    """
    names, member = np.unique(case.astype(str), return_inverse=True)
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat)
    sums, counts = np.zeros((2, len(names), flat.shape[1]))
    np.add.at(sums, member, np.where(known, flat, 0.0))
    np.add.at(counts, member, known)
    there = counts > 0
    per_case = sums / np.maximum(counts, 1)
    n, drawn = len(names), np.full((draws, flat.shape[1]), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = per_case.sum(0) / there.sum(0)
        if n > 1:
            weight = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
            drawn = weight @ per_case / (n if there.all() else weight @ there.astype(np.float64))
    shape = values.shape[1:]
    return Resampled(mean.reshape(shape), drawn.reshape(draws, *shape), len(names))


@dataclass(frozen=True, eq=False)
class Shift:
    """A persona's label contrasts minus the base's, in pairs, by layer: as the lens and as the held-out readout has it.

    In nats; ``[layer, contrast]``. Both arms of the readout come from the fit that saw neither case nor persona.
    """

    persona: str
    base: str
    stratum: str
    lens: Resampled
    readout: Resampled


def pairs_of(reads: LensReads, bases: Sequence[str]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, int]]:
    """Persona, base, the rows of both in pairs, and the part of the readouts that left the persona out."""
    table, persona = reads.table, text_of(reads.table, "persona")
    neutral = control_personas(table)
    for base in bases:
        theirs = np.flatnonzero(np.isin(persona, neutral) if base == CONTROLS else persona == base)
        for name in dict.fromkeys(persona.tolist()):
            ours = np.flatnonzero(persona == name)
            if name != base and not (base == CONTROLS and name in neutral):
                left, right = pair_rows(table.iloc[ours], table.iloc[theirs])
                yield name, base, ours[left], theirs[right], int(reads.part[ours[0]])


def paired_shifts(reads: LensReads, bases: Sequence[str], rng: np.random.Generator) -> list[Shift]:
    """Every persona against every base (``controls``: the mean of the control wordings), pooled and per stratum."""
    found = []
    for name, base, left, right, part in pairs_of(reads, bases):
        for stratum, inside in strata_of(reads.table, left):
            a, b = left[inside], right[inside]
            lens, readout = (np.moveaxis(x[:, a] - x[:, b], 0, 1) for x in (reads.lens, reads.readout[:, part]))
            case, seed = text_of(reads.table.iloc[a], "case"), int(rng.integers(2**63))
            drawn = (mean_over_cases(x, case, np.random.default_rng(seed)) for x in (lens, readout))
            found.append(Shift(name, base, stratum, *drawn))
    return found


def contrast_table(reads: LensReads, shifts: Sequence[Shift], rng: np.random.Generator) -> pd.DataFrame:
    """Label contrasts by layer: ``quantity`` ``level`` of every persona, and its ``shift`` from the base, in nats.

    Columns: persona, base, stratum, position, reader (lens, held-out readout), contrast, quantity, layer, value, low,
    high, n (cases), baseline, method, note. A level of the lens is the contrast minus its value on the base's
    content-free case at the same layer; of the readout, which predicts the last layer's contrast, minus that at the
    last layer. A shift needs no baseline.
    """
    names = contrast_names(reads.options)
    rows: list[dict[str, object]] = []
    levels = {LENS: reads.lens - reads.offset, READOUT: reads.own_readout - reads.offset_final}
    for persona, stratum, inside in _arms(reads.table):
        case, seed = text_of(reads.table.iloc[inside], "case"), int(rng.integers(2**63))
        key = {"persona": persona, "base": "", "stratum": stratum, "quantity": "level"}
        for reader, values in levels.items():
            drawn = mean_over_cases(np.moveaxis(values[:, inside], 0, 1), case, np.random.default_rng(seed))
            rows += _curve_rows(key | {"reader": reader, "baseline": reads.baseline}, drawn, reads.layers, names)
    for shift in shifts:
        key = {"persona": shift.persona, "base": shift.base, "stratum": shift.stratum, "quantity": "shift"}
        for reader, drawn in ((LENS, shift.lens), (READOUT, shift.readout)):
            rows += _curve_rows(key | {"reader": reader, "baseline": ""}, drawn, reads.layers, names)
    table = pd.DataFrame(rows).assign(position=reads.position)
    first = [
        "persona",
        "base",
        "stratum",
        "position",
        "reader",
        "contrast",
        "quantity",
        "layer",
        "value",
        "low",
        "high",
    ]
    return table[[*first, "n", "baseline", "method", "note"]]


def _curve_rows(
    key: Mapping[str, object], drawn: Resampled, layers: Sequence[int], names: Sequence[str]
) -> Iterator[dict[str, object]]:
    for k, contrast in enumerate(names):
        for i, layer in enumerate(layers):
            ends = {"value": drawn.mean[i, k], "low": drawn.low[i, k], "high": drawn.high[i, k]}
            yield {**key, "contrast": contrast, "layer": layer} | ends | _told(drawn, drawn.mean[i, k])


def _told(drawn: Resampled, value: float) -> dict[str, object]:
    note = "undefined: too few cases or personas to hold any out" if np.isnan(value) else ""
    return {"n": drawn.n, "method": METHOD, "note": note or ("one case: no interval" if drawn.n < 2 else "")}


def agreement_table(reads: LensReads, rng: np.random.Generator) -> pd.DataFrame:
    """How often the label that a layer shows is the latent, or the stated, label; by persona, stratum and reader.

    Columns: persona, stratum, position, reader, target (``latent`` label, at the end of the prompt; ``stated``, of the
    written answer; ``read``: the likeliest at this position's own label read), layer, value, low, high, n (cases),
    majority (share of the commonest target), method, note. Over *all* cells stated and latent labels mostly agree: what
    tells them apart is the sides-with curve.
    """
    outcomes = read_outcomes(reads.table, options=reads.options)
    targets = {"latent": outcomes.latent, "stated": outcomes.stated, "read": likeliest(reads.final)}
    rows: list[dict[str, object]] = []
    shown = {LENS: reads.lens_label, READOUT: reads.readout_label}
    for persona, stratum, inside in _arms(reads.table):
        for target, label in targets.items():
            own = label[inside]
            if not (own >= 0).any():
                continue
            case, seed = text_of(reads.table.iloc[inside], "case"), int(rng.integers(2**63))
            majority = np.bincount(own[own >= 0]).max() / (own >= 0).sum()
            for reader, labels in shown.items():
                hit = np.where((own >= 0) & (labels[:, inside] >= 0), labels[:, inside] == own, np.nan).T[..., None]
                drawn = mean_over_cases(hit, case, np.random.default_rng(seed))
                key: dict[str, object] = {"persona": persona, "stratum": stratum, "position": reads.position}
                key |= {"reader": reader, "target": target, "majority": majority}
                rows += list(_curve_rows(key, drawn, reads.layers, [""]))
    first = ["persona", "stratum", "position", "reader", "target", "layer", "value", "low", "high", "n", "majority"]
    return pd.DataFrame(rows)[[*first, "method", "note"]]


def reliability_table(reads: LensReads, shifts: Sequence[Shift], rng: np.random.Generator) -> pd.DataFrame:
    """Where lens and held-out readout agree, by persona and layer: elsewhere the lens is marked unreliable.

    Columns: persona (``all``: every cell), position, layer, value (correlation of the two readers' contrasts over
    cells), low, high, n (cases), readout_r2 (share of the last layer's contrasts that the readout predicts), reliable,
    method, note. A layer is reliable if the correlation is at least ``LEAST_CORRELATION`` and the persona's shift from
    the base has no opposite signs, each with an interval that excludes 0. The last residual point is: there the lens is
    the model's own output, checked.
    """
    rows = []
    for persona, stratum, inside in _arms(reads.table, everyone=True):
        if stratum != ALL:
            continue
        case, seed = text_of(reads.table.iloc[inside], "case"), int(rng.integers(2**63))
        shared = _correlation((reads.lens - reads.offset)[:, inside], reads.own_readout[:, inside], case, seed)
        explained = _r2(reads.own_readout[:, inside], reads.final[inside])
        opposed = _opposed([one for one in shifts if one.persona == persona and one.stratum == ALL], reads)
        for i, layer in enumerate(reads.layers):
            exact = reads.check is not None and i == len(reads.layers) - 1
            note = "" if exact else _doubt(float(shared.mean[i]), opposed.get(i, ""))
            ends = {"value": shared.mean[i], "low": shared.low[i], "high": shared.high[i], "n": shared.n}
            row: dict[str, object] = {"persona": persona, "position": reads.position, "layer": layer} | ends
            rows.append(row | {"readout_r2": explained[i], "reliable": not note, "method": METHOD, "note": note})
    return pd.DataFrame(rows)


def _doubt(shared: float, opposed: str) -> str:
    if np.isnan(shared):
        return "unreliable: lens or held-out readout does not vary over cells, so that nothing confirms the lens"
    if shared < LEAST_CORRELATION:
        return f"unreliable: lens and held-out readout agree little (correlation {shared:.2f} < {LEAST_CORRELATION})"
    return opposed


def _opposed(shifts: Sequence[Shift], reads: LensReads) -> dict[int, str]:
    """Layers at which lens and readout show shifts of opposite signs, both with intervals that exclude 0."""
    names = contrast_names(reads.options)
    found: dict[int, str] = {}
    for shift in shifts:
        a, b = shift.lens, shift.readout
        against = ((a.low > 0) & (b.high < 0)) | ((a.high < 0) & (b.low > 0))
        for i, k in np.argwhere(against):
            what = f"unreliable: lens and held-out readout show opposite shifts of {names[k]} from {shift.base}"
            found.setdefault(int(i), what)
    return found


def _correlation(a: Float[np.ndarray, "layer row contrast"], b: np.ndarray, case: np.ndarray, seed: int) -> Resampled:
    """Correlation of two readers' contrasts over cells at every layer, all contrasts together, each about its mean."""
    moments = np.stack([a, b, a * a, b * b, a * b], axis=-1)
    drawn = mean_over_cases(np.moveaxis(moments, 0, 1), case, np.random.default_rng(seed))
    return Resampled(_correlation_of(drawn.mean), _correlation_of(drawn.draws), drawn.n)


def _correlation_of(moments: Float[np.ndarray, "*any contrast moment"]) -> Float[np.ndarray, "*any"]:
    """From the means of a, b, a^2, b^2 and ab; NaN where one of them does not vary but for rounding."""
    x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    of_x, of_y, of_both = ((m - n).sum(-1) for m, n in ((xx, x * x), (yy, y * y), (xy, x * y)))
    constant = (of_x <= 1e-9 * xx.sum(-1)) | (of_y <= 1e-9 * yy.sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant, np.nan, of_both / np.sqrt(of_x * of_y))


def _r2(predicted: Float[np.ndarray, "layer row contrast"], final: np.ndarray) -> Float[np.ndarray, " layer"]:
    known = np.isfinite(predicted).all((0, 2))
    if not known.any():
        return np.full(len(predicted), np.nan)
    total = ((final[known] - final[known].mean(0)) ** 2).sum()
    left = ((predicted[:, known] - final[known]) ** 2).sum((1, 2))
    return np.asarray(1 - left / total if total > 0 else np.full(len(predicted), np.nan))


def _quantile(draws: np.ndarray, at: float) -> np.ndarray:
    if not np.isnan(draws).any():
        return np.asarray(np.quantile(draws, at, axis=0))
    lacking = np.isnan(draws).all(0)
    return np.where(lacking, np.nan, np.nanquantile(np.where(lacking, 0.0, draws), at, axis=0))


def _arms(table: pd.DataFrame, *, everyone: bool = False) -> Iterator[tuple[str, str, Int[np.ndarray, " row"]]]:
    """Every persona (with ``everyone`` first all of them together), pooled and in each stratum, with its rows."""
    persona = text_of(table, "persona")
    for name in [*([ALL] if everyone else []), *dict.fromkeys(persona.tolist())]:
        rows = np.arange(len(table)) if name == ALL else np.flatnonzero(persona == name)
        for stratum, inside in strata_of(table, rows):
            yield name, stratum, rows[inside]


def strata_of(table: pd.DataFrame, rows: Int[np.ndarray, " row"]) -> Iterator[tuple[str, Bool[np.ndarray, " row"]]]:
    """``all``, then every stratum of these rows where there are several, with a mask over them."""
    stratum = text_of(table, "stratum")[rows]
    yield ALL, np.full(len(rows), True)
    found = dict.fromkeys(stratum.tolist())
    if len(found) > 1:
        for name in found:
            yield name, stratum == name
