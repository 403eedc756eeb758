"""Do activations predict where the stated label departs from the latent one, beyond what the outputs say? Knows cells
and residuals; makes no claim of mediation.

Question (b) of ESTIMATORS, "Shift and disagreement": prediction over a saturated output baseline. Margin and label mass
under the persona are effects of the persona, so nothing here says what the disagreement is caused by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.behaviour import Outcomes, control_personas, read_outcomes
from probe.behaviour.intervals import mean
from probe.mechanism.activations import Activations, SiteRows
from probe.mechanism.linear.crossfit import judged, log_loss, logistic
from probe.mechanism.relation.gains import Judgement, max_t
from probe.mechanism.relation.paired_arms import bases_of, cells_of, paired_rows
from probe.mechanism.relation.saturated import margin_and_persona, saturated_outputs
from probe.mechanism.splits import fold_of
from probe.values import ProbeError

FEATURES = ("shift", "state")
"""*shift*: how far along its persona's mean shift a cell was moved, and how far off that axis; *state*: a linear
readout of what the outputs leave of the disagreement from the residual. Both are fitted on other case families."""

RANDOM_AXES = 19
FEWEST = 20
"""Cells of either kind (disagreeing, agreeing) below which nothing is fitted."""

COLUMNS = (
    *("features", "base", "position", "layer", "value", "low", "high", "null_high", "p", "p_adjusted", "loss"),
    *("n", "rows", "disagree", "method", "note"),
)


@dataclass(frozen=True)
class Settings:
    """How many folds, by which seed they are dealt, and how many permutations make the null."""

    folds: int = 5
    seed: int = 0
    permutations: int = 199


def prediction(
    acts: Activations,
    *,
    base: str | None = None,
    nonsense: str | None = None,
    positions: Sequence[str] | None = None,
    settings: Settings | None = None,
    rng: np.random.Generator | None = None,
    step: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> pd.DataFrame:
    """Log loss of the disagreement (stated label is not the latent one) that activations save, out of fold.

    ``value`` is in nats per cell, over the cells of every persona but the base, with a t interval clustered by case
    family (which does not know of the fitting; the p does). First come the baselines with their ``loss``: base rate,
    margin and persona, saturated outputs; then per site both kinds of :data:`FEATURES` over the saturated outputs.
    ``p`` is against the same features from other cases (their part that the baseline does not explain, moved over case
    blocks within strata and folds; *state* is fitted anew each time), ``p_adjusted`` against the largest of all sites
    and features (max-T), ``null_high`` the 95 % quantile of that null. Controls: a random axis drawn from the shifts'
    covariance (mean of 19), the axis of the persona ``nonsense``, and the features of another case. ``positions`` are
    by default those up to the end of the prompt; at ``answer`` the baseline has the log-ratios there too. ``step`` may
    show progress over layers.

    Raises:
        ProbeError: fewer than 20 cells agree or disagree, the base is not in the table, or cells lack the log-ratios of
            a position that is asked for.
    """
    settings, rng = settings or Settings(), rng or np.random.default_rng(0)
    outcomes = read_outcomes(acts.table)
    (name, members), *_ = bases_of(outcomes, control_personas(acts.table), base).items()
    scene = _Scene.of(acts, outcomes, members, settings)
    before = [one for one in acts.positions if one not in ("answer", "response_mean")]
    tests: list[tuple[dict[str, object], float, np.ndarray]] = []
    rows, seeds = scene.baselines(), rng.integers(2**63, size=2)
    for position in before if positions is None else positions:
        judgement = scene.judgement(position)
        # The same permutations of the same cells at every site: the largest of all of them is taken.
        orders = judgement.orders(np.random.default_rng(seeds[0]), settings.permutations)
        axes = np.random.default_rng(seeds[1])
        for layer in step(iter(acts.layers)):
            site = acts.at(layer, position)
            if not scene.covered(site):
                rows.append({"features": "state", "position": position, "layer": layer, "note": _ABSENT})
                continue
            own = scene.residuals(site)
            for features, made in scene.features(site, own, judgement, nonsense, axes):
                row = {"features": features, "position": position, "layer": layer, **scene.counts}
                together = judgement.unexplained(np.concatenate(made, axis=2))
                left = np.stack(np.split(together, len(made), axis=2))
                gained = judgement.gain(left).mean(0)
                row |= scene.interval(gained)
                if features in FEATURES:
                    refitted = features == "state"
                    null = judgement.null_of_readout(own, orders) if refitted else judgement.null(left[0], orders)
                    row["null_high"] = float(np.quantile(null, 0.95))
                    tests.append((row, float(gained.mean()), null))
                    other = {"features": f"{features} of another case", "position": position, "layer": layer}
                    rows.append({**other, "value": float(null.mean()), "method": "mean of the null", **scene.counts})
                rows.append(row)
    if tests:
        p, adjusted = max_t(np.array([one[1] for one in tests]), np.stack([one[2] for one in tests]))
        for (row, _, _), alone, together in zip(tests, p, adjusted, strict=True):
            row |= {"p": alone, "p_adjusted": together}
    return pd.DataFrame([{"base": name, "note": "", **row} for row in rows], columns=list(COLUMNS))


_ABSENT = "undefined: cells lack this position"


@dataclass(frozen=True, eq=False)
class _Scene:
    """The cells that are judged, in the order of the table, and what pairs them with the base."""

    acts: Activations
    outcomes: Outcomes
    cells: pd.DataFrame
    rows: Int[np.ndarray, " row"]
    theirs: Int[np.ndarray, " base_row"]
    key: Int[np.ndarray, " row"]
    their_key: Int[np.ndarray, " base_row"]
    y: Float[np.ndarray, " row"]
    fold: Int[np.ndarray, " row"]
    family: np.ndarray

    @classmethod
    def of(cls, acts: Activations, outcomes: Outcomes, members: tuple[str, ...], settings: Settings) -> _Scene:
        cells = cells_of(acts.table, outcomes)
        known = (outcomes.stated >= 0) & ~np.isnan(outcomes.latent_logp).any(1)
        is_base = np.isin(outcomes.persona, members)
        arms = paired_rows(cells, np.flatnonzero(known & ~is_base), np.flatnonzero(is_base))
        rows = arms.ours
        y = (outcomes.stated[rows] != outcomes.latent[rows]).astype(float)
        if min(y.sum(), (1 - y).sum()) < FEWEST:
            raise ProbeError(
                f"what predicts the disagreement takes at least {FEWEST} cells that agree and as many that do not; of "
                f"{len(y)} cells {int(y.sum())} disagree"
            )
        family = cells["family_of_case"].to_numpy()[rows]
        fold = fold_of(family, settings.folds, settings.seed, outcomes.stratum[rows])
        return cls(acts, outcomes, cells, rows, arms.theirs, arms.key, arms.their_key, y, fold, family)

    @property
    def counts(self) -> dict[str, object]:
        cases = np.unique(self.cells["case"].to_numpy()[self.rows])
        return {"n": len(cases), "rows": len(self.y), "disagree": int(self.y.sum())}

    def judgement(self, position: str) -> Judgement:
        design = self.design(answer=position in ("answer", "response_mean"))
        if lacking := int(np.isnan(design).any(1).sum()):
            raise ProbeError(
                f"at {position} the baseline needs the label log-probabilities of the answer site, and {lacking} of "
                f"{len(design)} cells have none; choose other positions, or cells that state a letter"
            )
        _, block = np.unique(self.family, return_inverse=True)
        slot = _slots(self.cells.iloc[self.rows], block)
        _, first = np.unique(block, return_index=True)
        stratum = self.outcomes.stratum[self.rows][first]
        return Judgement(self.y, logistic(design, self.y, self.fold), design, self.fold, block, slot, stratum)

    def design(self, *, answer: bool) -> Float[np.ndarray, "row column"]:
        part = self.outcomes.take(self.rows)
        return saturated_outputs(part, self.acts.table.iloc[self.rows], answer=answer)

    def baselines(self) -> list[dict[str, object]]:
        part = self.outcomes.take(self.rows)
        designs = {"margin and persona": margin_and_persona(part), "saturated outputs": self.design(answer=False)}
        rate = np.array([self.y[self.fold != f].mean() for f in range(int(self.fold.max()) + 1)])
        plain = log_loss(np.log(rate / (1 - rate))[self.fold], self.y)
        rows: list[dict[str, object]] = [{"features": "base rate", "loss": float(plain.mean()), **self.counts}]
        for name, design in designs.items():
            eta = judged(logistic(design, self.y, self.fold)[:, :, None], self.fold)[:, 0]
            own = log_loss(eta, self.y)
            rows.append({"features": name, "loss": float(own.mean()), **self.interval(plain - own), **self.counts})
        return rows

    def interval(self, gained: Float[np.ndarray, " row"]) -> dict[str, object]:
        found = mean(gained, self.family)
        return {"value": found.value, "low": found.low, "high": found.high, "method": "t, SE clustered by family"}

    def covered(self, site: SiteRows) -> bool:
        return bool(np.isin(self.rows, site.places).all())

    def residuals(self, site: SiteRows) -> Float[np.ndarray, "row d_model"]:
        return np.asarray(site.x, dtype=np.float64)[np.searchsorted(site.places, self.rows)]

    def features(
        self, site: SiteRows, own: np.ndarray, judgement: Judgement, nonsense: str | None, rng: np.random.Generator
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Name and features [fold, row, feature] of everything that is judged at a site, several where it is drawn."""
        yield "state", [judgement.readout(own)]
        shift = self.shifts(site, np.asarray(site.x, dtype=np.float64), own)
        if shift is None:
            return
        persona = self.outcomes.persona[self.rows]
        names = np.unique(persona.astype(str))
        is_persona = (persona.astype(str)[:, None] == names[None, :]).astype(float)
        yield "shift", [self.along(shift, is_persona, is_persona)]
        one = np.ones((len(shift), 1))
        random = (rng.standard_normal((len(shift), 1)) for _ in range(RANDOM_AXES))
        centred = shift - shift.mean(0)
        yield "shift on a random axis", [self.along(shift, draw, one, centred) for draw in random]
        if nonsense is not None and nonsense in names:
            yield "shift on the nonsense axis", [self.along(shift, is_persona[:, names == nonsense], one)]

    def shifts(self, site: SiteRows, x: np.ndarray, own: np.ndarray) -> Float[np.ndarray, "row d_model"] | None:
        """Each cell minus the mean of the base cells of its key; None where one has no base cell at this site."""
        there = np.isin(self.theirs, site.places)
        size = int(max(self.key.max(), self.their_key.max())) + 1
        count = np.bincount(self.their_key[there], minlength=size)
        if (count[self.key] == 0).any():
            return None
        total = np.zeros((size, x.shape[1]))
        np.add.at(total, self.their_key[there], x[np.searchsorted(site.places, self.theirs[there])])
        return np.asarray(own - total[self.key] / count[self.key][:, None])

    def along(
        self,
        shift: Float[np.ndarray, "row d_model"],
        weight: Float[np.ndarray, "row group"],
        member: Float[np.ndarray, "row group"],
        source: Float[np.ndarray, "row d_model"] | None = None,
    ) -> Float[np.ndarray, "fold row feature"]:
        """How far each row was moved along the axis of its group, and how far off it.

        The axis is the weighted sum of ``source`` (the shifts) over rows of other folds than the one judged and the
        row's own; ``member`` says which group's axis a row is read on.
        """
        n_folds = int(self.fold.max()) + 1
        source = shift if source is None else source
        sums = np.stack([weight[self.fold == f].T @ source[self.fold == f] for f in range(n_folds)])
        total, group, square = sums.sum(0), member.argmax(1), (shift**2).sum(1)
        found = np.empty((n_folds, len(shift), 2))
        for f in range(n_folds):
            for g in range(n_folds):
                rows = np.flatnonzero(self.fold == g)
                axis = total - sums[f] - (sums[g] if g != f else 0.0)
                axis = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-300)
                length = (shift[rows] * axis[group[rows]]).sum(1)
                found[f, rows, 0] = length
                found[f, rows, 1] = np.sqrt(np.maximum(square[rows] - length**2, 0.0))
        return found


def _slots(cells: pd.DataFrame, block: np.ndarray) -> Int[np.ndarray, " row"]:
    """A number for what each row is within its block: which of its cases, which persona, which condition."""
    frame = cells.assign(block=block)
    frame["nth"] = frame.groupby("block")["case"].transform(lambda case: pd.factorize(case)[0])
    parts = [name for name in frame if name not in ("block", "case", "family_of_case", "stratum")]
    return frame.groupby(parts, sort=False, dropna=False).ngroup().to_numpy()
