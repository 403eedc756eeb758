"""Which cases a persona parts or joins, told from what was there before it: the base's own outputs and residuals. Knows
paired cells; says nothing of what the persona does inside.

Question (a) of ESTIMATORS, "Shift and disagreement": only pre-treatment quantities, so it may be read as heterogeneity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import log_softmax

from probe.behaviour import Outcomes, control_personas, read_outcomes
from probe.behaviour.intervals import mean, proportion
from probe.behaviour.scores import margin
from probe.mechanism.activations import Activations
from probe.mechanism.linear.crossfit import judged, log_loss, logistic
from probe.mechanism.relation.explanation import FEWEST, Settings
from probe.mechanism.relation.gains import Judgement, max_t
from probe.mechanism.relation.paired_arms import PairedArms, bases_of, cells_of, paired_arms
from probe.mechanism.relation.saturated import saturated_outputs
from probe.mechanism.splits import fold_of

GROUPS = ("agree", "disagree")

COLUMNS = (
    *("persona", "base", "group", "quantity", "position", "layer", "value", "low", "high", "null_high", "p"),
    *("p_adjusted", "n", "changed", "method", "note"),
)


def who_changes(
    acts: Activations | None,
    table: pd.DataFrame,
    *,
    base: str | None = None,
    position: str = "prompt_end",
    settings: Settings | None = None,
    rng: np.random.Generator | None = None,
    step: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> pd.DataFrame:
    """Among cases whose labels agree (or disagree) under the base: in which does the persona change that?

    ``quantity``: ``rate`` of cells that change, over all and by third of the base's margin (``rate, margin 1/3`` is the
    narrowest); ``base outputs``: log loss (nats per cell) that all of the base's label log-ratios, its margin, mass and
    lengths save over the rate alone, out of fold; ``base activations``: what a linear readout of the base's residual at
    ``position`` saves beyond those, with ``p`` by permutation over case blocks and max-T over layers. Where a base has
    several rows of a key (control wordings), their log-probabilities and residuals are averaged and most of them decide
    whether they agree; ties are left out. Without ``acts`` there are no activations. Below 20 cells of either outcome
    nothing is fitted.

    Raises:
        ProbeError: the base is not in the table, or the table breaks a rule of ``read_outcomes``.
    """
    settings, rng = settings or Settings(), rng or np.random.default_rng(0)
    outcomes = read_outcomes(table)
    (name, members), *_ = bases_of(outcomes, control_personas(table), base).items()
    cells, seed = cells_of(table, outcomes), int(rng.integers(2**63))
    rows: list[dict[str, object]] = []
    for persona in outcomes.personas:
        if persona in members:
            continue
        before = _before(outcomes, cells, paired_arms(cells, persona, members))
        for group in GROUPS:
            part = before.of(group)
            named = {"persona": persona, "base": name, "group": group}
            found = _rates(part)
            if min(part.changed.sum(), (1 - part.changed).sum()) >= FEWEST:
                fitted = _fitted(part, table, settings)
                found += [_outputs_row(part, fitted)]
                if acts is not None:
                    drawn = np.random.default_rng(seed)
                    found += _activation_rows(part, fitted, acts, position, settings, drawn, step)
            else:
                found.append({"quantity": "base outputs", "note": f"undefined: fewer than {FEWEST} cells of a kind"})
            rows += [
                named | {"n": len(part.changed), "changed": int(part.changed.sum()), "note": ""} | r for r in found
            ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True, eq=False)
class _Before:
    """The persona's cells: whether agreement changed, and what the base had in the same case and condition."""

    arms: PairedArms
    rows: Int[np.ndarray, " row"]
    agreed: Float[np.ndarray, " row"]
    changed: Float[np.ndarray, " row"]
    base: Outcomes
    family: np.ndarray
    stratum: np.ndarray

    def of(self, group: str) -> _Before:
        kept = self.agreed == (group == "agree")
        return replace(
            self,
            rows=self.rows[kept],
            agreed=self.agreed[kept],
            changed=self.changed[kept],
            base=self.base.take(kept),
            family=self.family[kept],
            stratum=self.stratum[kept],
        )


def _before(outcomes: Outcomes, cells: pd.DataFrame, arms: PairedArms) -> _Before:
    both = (outcomes.stated >= 0) & (outcomes.latent >= 0)
    agrees = np.where(both, outcomes.stated == outcomes.latent, np.nan).astype(float)
    base_agrees = arms.base_mean(agrees)
    own = agrees[arms.ours]
    told = ~np.isnan(own) & ~np.isnan(base_agrees) & (base_agrees != 0.5)
    told &= ~np.isnan(arms.base_mean(outcomes.latent_logp[:, 0]))
    kept = np.flatnonzero(told)
    agreed = (base_agrees[kept] > 0.5).astype(float)
    logp = {
        name: log_softmax(np.stack([arms.base_mean(column) for column in getattr(outcomes, name).T], axis=1), axis=1)
        for name in ("latent_logp", "stated_logp")
    }
    rows = arms.ours[kept]
    averaged = {name: values[kept] for name, values in logp.items()}
    base = replace(outcomes.take(rows), mass=arms.base_mean(outcomes.mass)[kept], **averaged)
    base = replace(base, latent=base.latent_logp.argmax(1))
    family, stratum = (cells[name].to_numpy()[rows] for name in ("family_of_case", "stratum"))
    return _Before(arms, rows, agreed, (own[kept] != agreed).astype(float), base, family, stratum)


def _rates(part: _Before) -> list[dict[str, object]]:
    if not len(part.changed):
        return [{"quantity": "rate", "note": "undefined: no such cell"}]
    found = [_rate("rate", part.changed, part.family)]
    width = margin(part.base)
    if np.isnan(width).any():
        return found
    cuts = np.quantile(width, (1 / 3, 2 / 3))
    third = np.searchsorted(cuts, width)
    for k in range(3):
        inside = third == k
        if inside.any():
            found.append(_rate(f"rate, margin {k + 1}/3", part.changed[inside], part.family[inside]))
    return found


def _rate(name: str, changed: np.ndarray, family: np.ndarray) -> dict[str, object]:
    found = proportion(changed, family)
    row: dict[str, object] = {"quantity": name, "value": found.value, "low": found.low, "high": found.high}
    return row | {"n": len(changed), "changed": int(changed.sum()), "method": found.method}


def _fitted(part: _Before, table: pd.DataFrame, settings: Settings) -> Judgement:
    # The length of the persona's own answer is an effect of the persona.
    told = table.iloc[part.rows].drop(columns="n_gen", errors="ignore")
    answered = not np.isnan(part.base.stated_logp).any()
    design = saturated_outputs(part.base, told, answer=answered, personas=False)
    fold = fold_of(part.family, settings.folds, settings.seed, part.stratum)
    _, block = np.unique(part.family, return_inverse=True)
    slot = pd.DataFrame({"block": block}).groupby("block").cumcount().to_numpy()
    _, first = np.unique(block, return_index=True)
    eta = logistic(design, part.changed, fold)
    return Judgement(part.changed, eta, design, fold, block, slot, part.stratum[first])


def _outputs_row(part: _Before, fitted: Judgement) -> dict[str, object]:
    rate = np.array([fitted.y[fitted.fold != f].mean() for f in range(len(fitted.eta))])[fitted.fold]
    plain = log_loss(np.log(rate / (1 - rate)), fitted.y)
    gained = plain - log_loss(judged(fitted.eta[:, :, None], fitted.fold)[:, 0], fitted.y)
    return {"quantity": "base outputs", **_interval(gained, part.family)}


def _activation_rows(
    part: _Before,
    fitted: Judgement,
    acts: Activations,
    position: str,
    settings: Settings,
    rng: np.random.Generator,
    step: Callable[[Iterator[int]], Iterator[int]],
) -> list[dict[str, object]]:
    orders = fitted.orders(rng, settings.permutations)
    rows: list[dict[str, object]] = []
    observed, nulls = [], []
    for layer in step(iter(acts.layers)):
        x = _base_residuals(part, acts, layer, position)
        if x is None:
            continue
        gained = fitted.gain(fitted.unexplained(fitted.readout(x))[None])[0]
        null = fitted.null_of_readout(x, orders)
        row = {"quantity": "base activations", "position": position, "layer": layer, **_interval(gained, part.family)}
        rows.append(row | {"null_high": float(np.quantile(null, 0.95))})
        observed.append(float(gained.mean()))
        nulls.append(null)
    if rows:
        p, adjusted = max_t(np.array(observed), np.stack(nulls))
        for row, own, together in zip(rows, p, adjusted, strict=True):
            row |= {"p": own, "p_adjusted": together}
    return rows


def _base_residuals(
    part: _Before, acts: Activations, layer: int, position: str
) -> Float[np.ndarray, "row d_model"] | None:
    """Mean residual of the base's cells of each row's key; None where one has none at this site."""
    site, arms = acts.at(layer, position), part.arms
    there = np.isin(arms.theirs, site.places)
    x = np.asarray(site.x, dtype=np.float64)[np.searchsorted(site.places, arms.theirs[there])]
    size = int(max(arms.key.max(initial=-1), arms.their_key.max(initial=-1))) + 1
    count = np.bincount(arms.their_key[there], minlength=size)
    key_of_row = dict(zip(arms.ours.tolist(), arms.key.tolist(), strict=True))
    key = np.array([key_of_row[row] for row in part.rows.tolist()])
    if (count[key] == 0).any():
        return None
    total = np.zeros((size, x.shape[1]))
    np.add.at(total, arms.their_key[there], x)
    return np.asarray(total[key] / count[key][:, None])


def _interval(gained: Float[np.ndarray, " row"], family: np.ndarray) -> dict[str, object]:
    found = mean(gained, family)
    return {"value": found.value, "low": found.low, "high": found.high, "method": "t, SE clustered by family"}
