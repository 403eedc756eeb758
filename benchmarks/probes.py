"""Nested probes with their permutations in closed form, beside a loop of scikit-learn's LogisticRegression.

python benchmarks/probes.py [--quick] [--layers 33] [--permutations 200] [--slice 5] [--seed 0]

300 cases under 12 personas (3,600 rows) at 33 layers of width 1,024: standardised features with a power-law spectrum,
what rows of a case have in common, and a planted direction that fades in over the layers, at a base rate of .2. Both
sides get the same folds (by case) and the same permutations (whole cases change their labels) and choose their own
strength by inner folds, anew for every permutation. Ours runs in full; the loop is run on a slice (some layers, the
labels as they are and two permutations of them, all folds) and scaled by the number of fits: once with *only the last
fit*, at the C that the inner folds chose, and once with the inner folds' fits too, which is what it would cost.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probe.mechanism.linear.ridge import nested
from probe.mechanism.linear.scores import auroc, fold_auroc, macro
from probe.mechanism.probes.nulls import blocks_moved
from probe.mechanism.splits import fold_of

PERSONAS, FOLDS, BASE_RATE = 12, 5, 0.2
STRENGTHS = tuple(10.0**k for k in range(-4, 1))
"""Values of C that the loop's inner folds choose among, by AUROC."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Labels and their permutations, and the fold and case of each row."""

    case: np.ndarray
    fold: np.ndarray
    labels: np.ndarray  # [1 + permutation, row], the labels as they are first


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="600 rows of width 128, to see that all of it runs")
    parser.add_argument("--layers", type=int, default=33)
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--slice", type=int, default=5, help="layers at which the loop is run")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    cases, width = (50, 128) if chosen.quick else (300, 1024)
    rng = np.random.default_rng(chosen.seed)
    rows = drawn_rows(cases, chosen.permutations, rng)
    fits = chosen.layers * FOLDS * (1 + chosen.permutations)
    print(f"{platform.processor() or platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} BLAS threads")
    print(
        f"{len(rows.case):,} rows x {width:,} x {chosen.layers} layers, {FOLDS} folds, {chosen.permutations} "
        f"permutations: {fits:,} fits after their inner folds\n"
    )
    slice_ = set(np.linspace(0, chosen.layers - 1, chosen.slice).round().astype(int).tolist())
    ours, found, last, whole, theirs = 0.0, [], [], [], {}
    for layer in range(chosen.layers):
        x = drawn_layer(rows, width, layer / max(chosen.layers - 1, 1), rng)
        started = time.process_time()
        found.append(nested_auroc(x, rows))
        ours += time.process_time() - started
        if layer in slice_:
            for k in range(3):
                value, seconds_last, seconds_whole = looped_auroc(x, rows, rows.labels[k])
                last += seconds_last
                whole += seconds_whole
                if k == 0:
                    theirs[layer] = value
    difference = np.mean([found[layer][0] - value for layer, value in theirs.items()])
    print("| layer | AUROC, closed form | AUROC, LogisticRegression | 95 % of permutations below |")
    print("|---|---|---|---|")
    for layer, value in theirs.items():
        print(f"| {layer} | {found[layer][0]:.3f} | {value:.3f} | {np.quantile(found[layer][1:], 0.95):.3f} |")
    print(f"\nmean difference in AUROC {difference:+.4f} (target >= -.01)")
    print(f"ours, all of it: {ours:.1f} s")
    for words, seconds in (("the last fits alone", last), ("with inner folds", whole)):
        scaled = float(np.mean(seconds)) * fits
        print(
            f"loop, {words}: {1e3 * np.mean(seconds):.1f} ms each over {len(seconds)} timed, scaled to {fits:,}: "
            f"{scaled:,.0f} s, {scaled / ours:.0f} times as long"
        )


def drawn_rows(cases: int, permutations: int, rng: np.random.Generator) -> Rows:
    """Labels of which a part belongs to the case, and permutations that move whole cases."""
    case = np.repeat([f"case-{i}" for i in range(cases)], PERSONAS)
    persona = np.tile([f"p{j}" for j in range(PERSONAS)], cases)
    tendency = np.repeat(rng.normal(size=cases), PERSONAS) + rng.normal(size=len(case))
    label = tendency > np.quantile(tendency, 1 - BASE_RATE)
    moves = blocks_moved(case, persona, np.full(len(case), "all"), permutations, rng)
    return Rows(case, fold_of(case, FOLDS), np.concatenate([label[None], label[moves.index]]))


def drawn_layer(rows: Rows, width: int, depth: float, rng: np.random.Generator) -> np.ndarray:
    """Eigenvalues ~ 1/k in a random basis, half of the variance common to a case, and the planted shift."""
    n = len(rows.case)
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    spectrum = np.arange(1, width + 1) ** -0.5
    common = np.repeat(rng.normal(size=(n // PERSONAS, width)), PERSONAS, axis=0)
    x = ((common + rng.normal(size=(n, width))) / np.sqrt(2) * spectrum) @ basis.T
    direction = rng.normal(size=width)
    direction /= np.linalg.norm(direction)
    x += 0.12 * depth * np.outer(rows.labels[0], direction)
    return np.asarray((x - x.mean(0)) / x.std(0))


def nested_auroc(x: np.ndarray, rows: Rows) -> np.ndarray:
    """[1 + permutation]: mean over folds of the out-of-fold AUROC, the strength chosen by inner folds."""
    labels = rows.labels.T
    score = nested(x, labels.astype(float), rows.fold).score
    return np.asarray(macro(fold_auroc(score, labels, rows.fold), np.arange(labels.shape[1])))


def looped_auroc(x: np.ndarray, rows: Rows, label: np.ndarray) -> tuple[float, list[float], list[float]]:
    """The same by scikit-learn: AUROC, and for each fold the seconds of its last fit and of all its fits."""
    areas, last, whole = [], [], []
    for f in range(FOLDS):
        started = time.process_time()
        train, test = np.flatnonzero(rows.fold != f), np.flatnonzero(rows.fold == f)
        inner = [
            (train[rows.fold[train] != g], train[rows.fold[train] == g]) for g in range(FOLDS) if g != f
        ]  # four inner folds
        gains = [np.mean([fitted_auroc(x, label, c, a, b)[0] for a, b in inner]) for c in STRENGTHS]
        area, seconds = fitted_auroc(x, label, STRENGTHS[int(np.argmax(gains))], train, test)
        areas.append(area)
        last.append(seconds)
        whole.append(time.process_time() - started)
    return float(np.mean(areas)), last, whole


def fitted_auroc(
    x: np.ndarray, label: np.ndarray, c: float, train: np.ndarray, test: np.ndarray
) -> tuple[float, float]:
    """AUROC on the test rows, and the seconds of the fit alone (without the scaler)."""
    scaler = StandardScaler().fit(x[train])
    z = scaler.transform(x[train])
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=c).fit(z, label[train])
    seconds = time.process_time() - started
    score = fitted.decision_function(scaler.transform(x[test]))[:, None]
    return float(auroc(score, label[test][:, None])[0]), seconds


if __name__ == "__main__":
    main()
