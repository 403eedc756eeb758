"""Linear probes of every layer and site with their nulls and baselines, as one table. Knows activations and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from probe.behaviour import Outcomes
from probe.mechanism.activations import Activations
from probe.mechanism.linear.logistic import nested_logistic
from probe.mechanism.linear.readouts import balanced_label, calibrated, one_hot
from probe.mechanism.linear.ridge import Nested, nested
from probe.mechanism.linear.scores import auroc_estimate, average_precision, balanced_accuracy, fold_auroc, macro
from probe.mechanism.probes.baselines import plain_features, random_features
from probe.mechanism.probes.nulls import largest_of_many
from probe.mechanism.probes.settings import Asked, ProbeSettings, Question, folds_of, questions
from probe.mechanism.probes.targets import Target
from probe.values import Estimate, ProbeError

COLUMNS = 2048
"""Label columns that one factorisation serves at a time: what bounds the memory of many permutations."""

RIDGE, MEANS, LOGISTIC, RANDOM = "ridge", "difference in means", "logistic", "control: random features"

NAMES = (
    *("target", "position", "layer", "method", "value", "low", "high", "n", "families", "rows", "classes"),
    *("base_rate", "auprc", "balanced_accuracy", "selectivity", "null_mean", "null_high", "p", "p_adjusted"),
    *("permutations", "note"),
)


@dataclass(frozen=True, eq=False)
class _Read:
    """One target read from one set of features: the observed figures, and the AUROC under each permutation."""

    estimate: Estimate
    cases: int
    auprc: float
    balanced_accuracy: float
    selectivity: float
    null: Float[np.ndarray, " permutation"]


def probe_table(
    activations: Activations,
    outcomes: Outcomes,
    targets: Mapping[str, Target],
    *,
    positions: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    settings: ProbeSettings | None = None,
    rng: np.random.Generator | None = None,
    track: Callable[[Iterable[tuple[str, int]], int], Iterable[tuple[str, int]]] = lambda sites, _: sites,
) -> pd.DataFrame:
    """How well a linear probe reads each target at each layer and position, with its null, controls and baselines.

    One row per target, position, layer and method. ``method`` "ridge" carries the tests: ``value`` is the mean over
    folds (of case families) of the AUROC within the fold, of several classes the unweighted mean of each against the
    rest; ``low``, ``high`` a 95 % interval for judged rows that cluster by family; ``n`` cases, ``rows`` cells.
    ``auprc`` stands beside ``base_rate``, what it is by chance (of several classes their mean share);
    ``balanced_accuracy`` is at equal priors, its threshold from inner folds; ``selectivity`` the AUROC less that of
    random labels per case. ``null_mean``, ``p``: permutations of the labels with everything rerun (see
    :mod:`probe.mechanism.probes.nulls`). ``p_adjusted``, ``null_high``: for the largest over all rows with
    permutations, the latter in AUROC. Other methods, without tests: "difference in means", "logistic" where asked
    for, and with an empty layer "baseline: ..." and "control: random features". What is undefined is NaN with
    a ``note``.

    ``outcomes`` are those of ``activations.table``, row by row; ``track`` may show progress over (position, layer).

    Raises:
        ProbeError: there are fewer families than folds, or no target is defined at any position.
    """
    settings, rng = settings or ProbeSettings(), rng or np.random.default_rng(0)
    if len(outcomes) != len(activations.table):
        raise ProbeError(
            f"outcomes must be aligned with the activations, found {len(outcomes)} for {len(activations.table)} cells"
        )
    fold, seed = folds_of(activations.table, settings), int(rng.integers(2**63))
    known: dict[bytes, tuple[Question, ...]] = {}
    rows: list[dict[str, object]] = []
    nulls: list[np.ndarray] = []
    places_of: dict[str, np.ndarray] = {}
    asked_layers = activations.layers if layers is None else layers
    sites = [(position, layer) for position in positions or activations.positions for layer in asked_layers]
    for position, layer in track(sites, len(sites)):
        site = activations.at(layer, position)
        places_of.setdefault(position, site.places)
        key = site.places.tobytes()
        if key not in known:
            known[key] = questions(activations.table, targets, fold, site.places, settings, seed)
        for question in known[key]:
            x = site.x[np.searchsorted(site.places, question.rows)]
            for asked, read in zip(question.asked, _read(x, question, settings, test=True), strict=True):
                rows.append(_row(asked, read, position, layer, RIDGE))
                nulls.append(read.null)
            others = {MEANS: _read(x, question, settings, alphas=(np.inf,))}
            if settings.logistic:
                others[LOGISTIC] = _logistic(x, question)
            for method, reads in others.items():
                rows += [_row(a, read, position, layer, method) for a, read in zip(question.asked, reads, strict=True)]
    if not rows:
        raise ProbeError("no target has a label at any captured position; there is nothing to probe")
    asked_at = {position: known[places.tobytes()] for position, places in places_of.items()}
    rows += _without_activations(activations, outcomes, asked_at, settings, seed)
    return _tested(pd.DataFrame(rows), nulls, settings.permutations, list(targets))


def _without_activations(
    activations: Activations,
    outcomes: Outcomes,
    asked_at: Mapping[str, tuple[Question, ...]],
    settings: ProbeSettings,
    seed: int,
) -> list[dict[str, object]]:
    """The plain baselines and random features of every position, on the rows that the probes there were judged on."""
    plain, rows = plain_features(activations.table, outcomes), []
    for position, asked_here in asked_at.items():
        for question in asked_here:
            drawn = random_features(question.case, activations.d_model, np.random.default_rng([seed, 1]))
            features = {f"baseline: {name}": x[question.rows] for name, x in plain.items()} | {RANDOM: drawn}
            for method, x in features.items():
                for asked, read in zip(question.asked, _read(x, question, settings), strict=True):
                    rows.append(_row(asked, read, position, None, method))
    return rows


def _read(
    x: Shaped[np.ndarray, "row feature"],
    question: Question,
    settings: ProbeSettings,
    *,
    test: bool = False,
    alphas: Sequence[float] = (),
) -> list[_Read]:
    """Every target of a question read from one set of features; with ``test``, its controls and permutations too."""
    alphas = alphas or settings.alphas
    coded = [one_hot(asked.target.codes, len(asked.target.classes)) for asked in question.asked]
    of_column = np.repeat(np.arange(len(coded)), [columns.shape[1] for columns in coded])
    found = nested(x, np.concatenate(coded, axis=1), question.fold, sets=of_column, alphas=alphas, keep=len(of_column))
    others = [(t, codes) for t, asked in enumerate(question.asked) for codes in asked.vectors[1:]] if test else []
    areas = _areas(x, question, others, alphas)
    of_target = np.array([t for t, _ in others], dtype=int)
    reads = []
    for t, asked in enumerate(question.asked):
        estimate, auprc, balanced = _observed(asked.target, found, question, int(np.flatnonzero(of_column == t)[0]))
        rest = areas[of_target == t]
        controls = rest[: asked.controls]
        usual = controls[~np.isnan(controls)].mean() if (~np.isnan(controls)).any() else np.nan
        selectivity = np.nan if estimate.value is None else float(estimate.value - usual)
        reads.append(
            _Read(estimate, len(set(question.case.tolist())), auprc, balanced, selectivity, rest[asked.controls :])
        )
    return reads


def _logistic(x: Shaped[np.ndarray, "row feature"], question: Question) -> list[_Read]:
    """Every target by logistic regression, as observed."""
    reads, cases = [], len(set(question.case.tolist()))
    for asked in question.asked:
        found = nested_logistic(x, one_hot(asked.target.codes, len(asked.target.classes)), question.fold)
        estimate, auprc, balanced = _observed(asked.target, found, question, 0)
        reads.append(_Read(estimate, cases, auprc, balanced, np.nan, np.array([])))
    return reads


def _areas(
    x: Shaped[np.ndarray, "row feature"],
    question: Question,
    vectors: Sequence[tuple[int, np.ndarray]],
    alphas: Sequence[float],
) -> Float[np.ndarray, " vector"]:
    """The AUROC of each label vector (target, codes), the whole nested procedure run on it; many share one call."""
    classes = [len(asked.target.classes) for asked in question.asked]
    columns = np.array([question.asked[t].target.columns for t, _ in vectors], dtype=int)
    areas = np.full(len(vectors), np.nan)
    call = (np.cumsum(columns) - 1) // COLUMNS
    for part in (np.flatnonzero(call == c).tolist() for c in np.unique(call)):
        y = np.concatenate([one_hot(vectors[i][1], classes[vectors[i][0]]) for i in part], axis=1)
        sets = np.repeat(np.arange(len(part)), columns[part])
        score = nested(x, y, question.fold, sets=sets, alphas=alphas).score
        areas[part] = macro(fold_auroc(score, y > 0, question.fold), sets)
    return areas


def _observed(target: Target, found: Nested, question: Question, first: int) -> tuple[Estimate, float, float]:
    """AUROC, AUPRC and balanced accuracy of a target whose scores stand from column ``first`` on."""
    score = found.score[:, first : first + target.columns]
    positive = one_hot(target.codes, len(target.classes)) > 0
    estimate = auroc_estimate(score, positive, question.fold, question.family)
    probability = calibrated(found, target.codes, question.fold, len(target.classes), first)
    predicted = balanced_label(probability, target.codes)
    precision = average_precision(score, positive, question.fold)
    return estimate, precision, balanced_accuracy(predicted, target.codes, question.fold)


def _row(asked: Asked, read: _Read, position: str, layer: int | None, method: str) -> dict[str, object]:
    target, estimate = asked.target, read.estimate
    shares = np.bincount(target.codes, minlength=len(target.classes)) / len(target.codes)
    base_rate = shares[1] if len(shares) == 2 else shares[shares > 0].mean()
    tested = method == RIDGE
    notes = [estimate.note, asked.note if tested else ""]
    return {
        "target": target.name,
        "position": position,
        "layer": pd.NA if layer is None else layer,
        "method": method,
        "value": np.nan if estimate.value is None else estimate.value,
        "low": np.nan if estimate.low is None else estimate.low,
        "high": np.nan if estimate.high is None else estimate.high,
        "n": read.cases,
        "families": estimate.n,
        "rows": len(target.codes),
        "classes": int((shares > 0).sum()),
        "base_rate": float(base_rate),
        "auprc": read.auprc,
        "balanced_accuracy": read.balanced_accuracy,
        "selectivity": read.selectivity,
        "permutations": int((~np.isnan(read.null)).sum()),
        "note": "; ".join(note for note in notes if note),
    }


def _tested(table: pd.DataFrame, nulls: Sequence[np.ndarray], permutations: int, order: list[str]) -> pd.DataFrame:
    """The table with its tests (``nulls`` of its ridge rows), in the order of the targets; layers may be missing."""
    ridge = np.flatnonzero(table["method"] == RIDGE)
    null = np.stack(nulls) if permutations else np.empty((len(ridge), 0))
    found = largest_of_many(table["value"].to_numpy(dtype=np.float64)[ridge], null)
    for name, values in (
        ("null_mean", found.null_mean),
        ("null_high", found.high),
        ("p", found.p),
        ("p_adjusted", found.p_adjusted),
    ):
        table[name] = np.nan
        table.loc[ridge, name] = values
    table["layer"] = table["layer"].astype("Int64")
    place = table["target"].map({name: i for i, name in enumerate(order)})
    return table.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)[list(NAMES)]
