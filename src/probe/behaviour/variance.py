"""What makes answers vary: the persona, its wording, the case, or asking again? Knows outcomes; knows no test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from probe.behaviour.components import henderson, levels_of, same_partition
from probe.behaviour.contrasts import CONTRASTS
from probe.behaviour.measures import split_by_columns
from probe.behaviour.outcomes import read_outcomes
from probe.values import ALL, ProbeError
from probe.values.nearest import nearest

COMPONENTS = ("persona", "wording", "case", "persona x case", "wording x case", "run", "seed", "remainder")
"""``wording`` lies within its persona; ``run`` is what all cells of one seed share, ``seed`` what the same cell varies
by when it is asked again; ``remainder`` stands for what a design without repeated cells cannot separate."""

RUN_SHARE = "runs / (runs + personas)"
"""(run + seed) / (run + seed + persona + persona x case): how much of a case's variation is asking again."""

GROUPS = 20
"""Groups of cases that the jackknife leaves out in turn."""

COLUMNS = ("metric", "stratum", "component", "variance", "low", "high", "share", "levels", "note")


def variance_components(
    table: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy",),
    *,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
) -> pd.DataFrame:
    """Variance of a metric's score over persona, wording (within persona), case, their products, runs and seeds.

    By moments (:func:`probe.behaviour.components.henderson`), on the score's own scale, so that a proportion's
    components add up to about p (1 - p). ``share`` is of the sum of the positive components. Intervals are jackknives
    over groups of cases: they hold for *these* personas, wordings and seeds. Conditions other than wording and seed
    (rotations, instructions) are averaged over first. A component that the design cannot identify (one seed, one
    wording per persona, ...) has no value; ``note`` says why. The last row is :data:`RUN_SHARE`: 1/2 means that
    the same case varies as much from run to run as from persona to persona.

    Raises:
        ProbeError: a metric is unknown, or the table breaks a rule of ``read_outcomes``.
    """
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    known = {contrast.name: contrast for contrast in CONTRASTS}
    for name in metrics:
        if name not in known:
            raise ProbeError(f"{name!r} has no variance components. {nearest(name, tuple(known), 'metric')}")
    present, absent = split_by_columns([known[name] for name in metrics], outcomes)
    names = {key: getattr(outcomes, key) for key in ("persona", "wording", "case", "seed", "stratum")}
    rows = []
    for contrast in present:
        frame = pd.DataFrame(names).assign(score=contrast.score(outcomes)).dropna(subset="score")
        cells = frame.groupby(["persona", "wording", "case", "seed", "stratum"], sort=False, as_index=False).mean()
        for stratum in outcomes.strata:
            part = cells if stratum == ALL else cells[cells["stratum"] == stratum]
            rows += [{"metric": contrast.name, "stratum": stratum, **row} for row in _decomposed(part)]
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    result.attrs = {"absent": list(absent)}
    return result


def _decomposed(cells: pd.DataFrame) -> list[dict[str, object]]:
    if len(cells) < 2:
        return [{"component": name, "note": "undefined: fewer than two cells"} for name in (*COMPONENTS, RUN_SHARE)]
    value = cells["score"].to_numpy(dtype=float)
    factors = _factors(cells)
    repeated = len(np.unique(factors["wording x case"])) < len(value)
    kept, notes = _identified(factors, len(value), repeated)
    whole = _components(value, kept, repeated)
    if np.isnan(list(whole.values())).any():
        note = "not identifiable: the factors of this design are mixed up with each other"
        return [{"component": name, "note": note} for name in (*COMPONENTS, RUN_SHARE)]
    left_out = _jackknife(value, kept, factors["case"], repeated)
    rows = []
    for name in COMPONENTS:
        row: dict[str, object] = {"component": name, "note": notes.get(name, "")}
        if name in whole:
            row |= {"variance": whole[name], **_interval(whole[name], left_out.get(name))}
            row["share"] = max(whole[name], 0.0) / max(
                sum(max(v, 0.0) for k, v in whole.items() if k != RUN_SHARE), 1e-300
            )
            row["levels"] = len(np.unique(factors[name])) if name in factors else len(value)
        rows.append(row)
    ratio: dict[str, object] = {"component": RUN_SHARE, "note": "undefined: see the components"}
    if RUN_SHARE in whole:
        ratio |= {"variance": whole[RUN_SHARE], **_interval(whole[RUN_SHARE], left_out.get(RUN_SHARE)), "note": ""}
    return [*rows, ratio]


def _factors(cells: pd.DataFrame) -> dict[str, Int[np.ndarray, " row"]]:
    persona, wording, case, seed = (cells[name].to_numpy() for name in ("persona", "wording", "case", "seed"))
    return {
        "persona": levels_of(persona),
        "wording": levels_of(persona, wording),
        "case": levels_of(case),
        "persona x case": levels_of(persona, case),
        "wording x case": levels_of(persona, wording, case),
        "run": levels_of(seed),
    }


def _identified(
    factors: dict[str, Int[np.ndarray, " row"]], n: int, repeated: bool
) -> tuple[dict[str, Int[np.ndarray, " row"]], dict[str, str]]:
    """The factors that the design can tell apart, the residual under its own name, and a note on each of the others."""
    kept: dict[str, Int[np.ndarray, " row"]] = {}
    notes: dict[str, str] = {}
    for name, levels in factors.items():
        size = len(np.unique(levels))
        twin = next((other for other, known in kept.items() if same_partition(levels, known)), None)
        if size == 1:
            notes[name] = f"not identifiable: one {'seed' if name == 'run' else name}"
        elif size == n:
            notes[name] = "not identifiable: no cell was asked twice, so it is part of the remainder"
        elif twin:
            notes[name] = f"not identifiable apart from {twin}"
        else:
            kept[name] = levels
    if repeated:
        notes["remainder"] = "none: cells were asked more than once"
    else:
        notes["seed"] = "not identifiable: no cell was asked twice; sample with several seeds"
    return kept, notes


def _components(
    value: Float[np.ndarray, " row"], kept: dict[str, Int[np.ndarray, " row"]], repeated: bool
) -> dict[str, float]:
    found = henderson(value, kept)
    found["seed" if repeated else "remainder"] = found.pop("residual")
    over_personas = found.get("persona", np.nan) + found.get("persona x case", np.nan)
    over_runs = found.get("run", 0.0) + found.get("seed", np.nan)
    if over_runs + over_personas > 0:
        found[RUN_SHARE] = over_runs / (over_runs + over_personas)
    return found


def _jackknife(
    value: Float[np.ndarray, " row"],
    kept: dict[str, Int[np.ndarray, " row"]],
    case: Int[np.ndarray, " row"],
    repeated: bool,
) -> dict[str, list[float]]:
    """Every component without each group of cases in turn."""
    n_cases = int(case.max()) + 1
    groups = min(GROUPS, n_cases)
    found: dict[str, list[float]] = {}
    if n_cases < 4:
        return found
    for group in range(groups):
        rows = case % groups != group
        part = {name: np.unique(levels[rows], return_inverse=True)[1] for name, levels in kept.items()}
        for name, variance in _components(value[rows], part, repeated).items():
            found.setdefault(name, []).append(variance)
    return {name: values for name, values in found.items() if len(values) == groups and not np.isnan(values).any()}


def _interval(value: float, left_out: list[float] | None) -> dict[str, float]:
    if left_out is None:
        return {}
    groups, values = len(left_out), np.array(left_out)
    spread = np.sqrt((groups - 1) / groups * ((values - values.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, groups - 1) * spread)
    return {"low": value - half, "high": value + half}
