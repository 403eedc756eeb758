"""At which depth a persona's label leaves the base's, and where it stays. Knows curves over layers; knows no label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.mechanism.lens.tables import LENS, METHOD, READOUT, Resampled, Shift

SEPARATES, SETTLES = "separates", "settles"

LEAST_FIT = 0.8
"""Share of a curve's squares that a ramp must explain for its two ends to be depths. Resamples of the cases cannot
tell: a readout that is wrong in the same way in every case gives them all the same ends."""


def depth_table(
    shifts: Sequence[Shift], layers: Sequence[int], position: str, reliable: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The layers between which each persona's shift of the label contrasts arises, with intervals over cases.

    Columns: persona, base, stratum, position, reader, quantity (``separates``: first layer with some of the shift;
    ``settles``: first layer with all of it), value, low, high, n (cases), fit (share of the curve's squares that the
    ramp explains), method, note. A ramp, nil up to one layer and constant from another on, is fitted to the whole
    curve of all contrasts together, in the sample and in every resample of the cases: no threshold is crossed, and no
    layer decides alone. Undefined where no contrast's shift at the last layer has an interval that excludes 0, and
    where the ramp explains less than ``LEAST_FIT`` of the curve: such a shift does not arise once, if it is one. Claims
    rest on the held-out readout; the lens' own rows say where it is marked unreliable.
    """
    rows = []
    for shift in shifts:
        for reader, drawn in ((READOUT, shift.readout), (LENS, shift.lens)):
            key = {"persona": shift.persona, "base": shift.base, "stratum": shift.stratum, "position": position}
            for row in _depths(drawn, np.asarray(layers)):
                rows.append(key | {"reader": reader} | row)
    table = pd.DataFrame(rows)
    if reliable is not None and len(table):
        table = _marked(table, reliable)
    return table


def ramp(
    curves: Float[np.ndarray, "draw layer contrast"], layers: Int[np.ndarray, " layer"]
) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """The ramp that fits each draw's curves best, by least squares: first layer above nil, first at full height, fit.

    A ramp is nil up to one captured layer, linear to another and constant from there on, with one height per contrast;
    or constant throughout, where the shift is there at the first layer. The earliest of equals is taken.
    """
    begins, ends, shapes = [0], [0], [np.ones(len(layers))]
    for i in range(len(layers) - 1):
        for j in range(i + 1, len(layers)):
            begins, ends = [*begins, i + 1], [*ends, j]
            shapes.append(np.clip((layers - layers[i]) / (layers[j] - layers[i]), 0.0, 1.0))
    basis = np.array(shapes)
    basis /= np.sqrt((basis**2).sum(1, keepdims=True))
    explained = sum((curves[:, :, k] @ basis.T) ** 2 for k in range(curves.shape[2]))
    best = np.argmax(np.asarray(explained), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        fit = np.max(np.asarray(explained), axis=1) / (curves**2).sum((1, 2))
    return layers[np.array(begins)[best]], layers[np.array(ends)[best]], fit


def _depths(drawn: Resampled, layers: Int[np.ndarray, " layer"]) -> list[dict[str, object]]:
    shared: dict[str, object] = {"n": drawn.n, "fit": np.nan, "method": f"ramp, least squares; {METHOD}"}
    nothing = {"value": np.nan, "low": np.nan, "high": np.nan} | shared
    if np.isnan(drawn.mean).any():
        note = "undefined: some layer has no reading (too few cases or personas to hold any out)"
    elif drawn.n < 2 or not ((drawn.low[-1] > 0) | (drawn.high[-1] < 0)).any():
        note = "undefined: at the last layer no contrast differs from the base's (its interval includes 0)"
    else:
        note = ""
    if note:
        return [{"quantity": name} | nothing | {"note": note} for name in (SEPARATES, SETTLES)]
    begins, ends, fit = ramp(np.concatenate([drawn.mean[None], drawn.draws]), layers)
    if fit[0] < LEAST_FIT:
        note = f"undefined: one ramp explains {fit[0]:.2f} of the curve's squares (at least {LEAST_FIT}); see the curve"
        return [{"quantity": name} | nothing | {"fit": float(fit[0]), "note": note} for name in (SEPARATES, SETTLES)]
    rows = []
    for name, found in ((SEPARATES, begins), (SETTLES, ends)):
        low, high = np.quantile(found[1:], [0.025, 0.975], method="nearest")
        value = {"value": float(found[0]), "low": float(low), "high": float(high)}
        rows.append({"quantity": name} | value | shared | {"fit": float(fit[0]), "note": ""})
    return rows


def _marked(depths: pd.DataFrame, reliable: pd.DataFrame) -> pd.DataFrame:
    """A note at depths of the lens that lie where it is marked unreliable."""
    doubted = reliable[~reliable["reliable"]].groupby("persona")["layer"].agg(set).to_dict()
    depths = depths.copy()
    for i, row in depths[(depths["reader"] == LENS) & depths["value"].notna()].iterrows():
        if row["value"] in doubted.get(row["persona"], ()):
            depths.loc[i, "note"] = "the lens is marked unreliable at this layer: take the held-out readout's"
    return depths
