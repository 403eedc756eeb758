"""Which components carry a persona's shift of the label contrasts. Knows direct parts; knows no store or model.

With x the last residual (centred for a LayerNorm) and s what the final norm divides by, for persona p and base 0:

    x_p/s_p - x_0/s_0 = (x_p - x_0) (1/s_p + 1/s_0)/2 + (x_p + x_0) (1/s_p - 1/s_0)/2

The first term is linear in x_p - x_0 and splits over what was added to the residual; the second is the *norm* term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.behaviour.columns import text_of
from probe.mechanism.lens.head import LabelHead, contrast_names, contrasts, gathered, label_scores
from probe.mechanism.lens.reads import LensReads
from probe.mechanism.lens.tables import METHOD, mean_over_cases, pairs_of, strata_of
from probe.values import ProbeError

NORM, TOTAL, ROUNDING = "norm", "total", "rounding"


@dataclass(frozen=True, eq=False)
class Components:
    """Direct parts of what was added to the residual, named, that sum to the last residual's; rows as in the reads."""

    names: tuple[str, ...]
    direct: Float[np.ndarray, "component row token"]


def components_of(reads: LensReads, terms: dict[tuple[str, int], Float[np.ndarray, "row token"]]) -> Components:
    """What is added between captured residual points: by stream where ``terms`` have a block's, else block by block.

    ``terms`` are direct parts by (stream, block), streams ``attn_out`` and ``mlp_out``. The first component is the
    first captured point (``embedding`` for point 0). ``rounding`` is what the streams of a block leave of the
    difference of its points, which numbers with few bits have.

    Raises:
        ProbeError: the streams leave more than the check of the lens allows, so that they are not what was added.
    """
    direct = np.stack([one.direct for one in reads.projected])
    names = ["embedding" if reads.layers[0] == 0 else f"point {reads.layers[0]}"]
    parts, rest = [direct[0]], np.zeros_like(direct[0])
    for i in range(len(reads.layers) - 1):
        low, high = reads.layers[i], reads.layers[i + 1]
        added = direct[i + 1] - direct[i]
        own = [(stream, terms.get((stream, low))) for stream in ("attn_out", "mlp_out")]
        if high == low + 1 and all(term is not None for _, term in own):
            for stream, term in own:
                assert term is not None
                names.append(f"{stream.removesuffix('_out')} {low}")
                parts.append(term)
                added = added - term
            rest += added
            continue
        names.append(f"block {low}" if high == low + 1 else f"blocks {low}-{high - 1}")
        parts.append(added)
    if split := len(names) - len(reads.layers):
        _check_streams(reads, rest, split)
        names, parts = [*names, ROUNDING], [*parts, rest]
    return Components(tuple(names), np.stack(parts))


def attribution_table(
    reads: LensReads, head: LabelHead, components: Components, bases: Sequence[str], rng: np.random.Generator
) -> pd.DataFrame:
    """Each component's share of the persona's shift of the label contrasts before the softcap, in nats.

    Columns: persona, base, stratum, position, contrast, component, layer (its block, NaN where it has none), value,
    low, high, n (cases), method, note. The components and ``norm`` sum to ``total``, the shift of the contrasts at
    the last residual point. Where a label has several tokens, each token's part is weighted so that this holds (see
    :func:`secant_weights`). Empty where the last residual point was not captured. Pairs whose labels are written by
    other tokens in the two arms have no common logit and are left out; ``note`` counts them.

    Raises:
        ProbeError: the components do not sum to the last residual point.
    """
    if reads.check is None:
        return pd.DataFrame()
    _check_sum(reads, components)
    table, rows = reads.table, []
    for name, base, left, right, _ in pairs_of(reads, bases):
        same = (reads.places[left] == reads.places[right]).all((1, 2))
        note = "" if same.all() else f"{(~same).sum()} of {len(same)} pairs are written by other tokens"
        left, right = left[same], right[same]
        if not len(left):
            continue
        values = attributed(reads, head, components, left, right)
        for stratum, inside in strata_of(table, left):
            key = {"persona": name, "base": base, "stratum": stratum, "position": reads.position, "note": note}
            case = text_of(table.iloc[left[inside]], "case")
            drawn = mean_over_cases(values[inside], case, np.random.default_rng(int(rng.integers(2**63))))
            for i, component in enumerate((*components.names, NORM, TOTAL)):
                for k, contrast in enumerate(contrast_names(reads.options)):
                    ends = {"value": drawn.mean[i, k], "low": drawn.low[i, k], "high": drawn.high[i, k]}
                    where = {"contrast": contrast, "component": component, "layer": _block(component)}
                    rows.append(key | where | ends | {"n": drawn.n, "method": METHOD})
    first = ["persona", "base", "stratum", "position", "contrast", "component", "layer", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*first, "method", "note"])


def attributed(
    reads: LensReads,
    head: LabelHead,
    components: Components,
    ours: Int[np.ndarray, " pair"],
    theirs: Int[np.ndarray, " pair"],
) -> Float[np.ndarray, "pair part contrast"]:
    """For every pair the contributions of the components, then of the norm term, then the total; nats, pre-softcap."""
    last, places = reads.projected[-1], reads.places[ours]
    a, b = 1 / last.norm[ours], 1 / last.norm[theirs]
    mean, half = ((a + b) / 2)[:, None], ((a - b) / 2)[:, None]
    ends = [last.logits(head)[rows] for rows in (ours, theirs)]
    weight = secant_weights(*(gathered(one, places) for one in ends))
    parts = [(one[ours] - one[theirs]) * mean for one in components.direct]
    parts.append((last.direct[ours] + last.direct[theirs]) * half)
    per_label = [(weight * np.where(places >= 0, gathered(part, places), 0.0)).sum(2) for part in parts]
    total = label_scores(ends[0], places) - label_scores(ends[1], places)
    return np.stack([contrasts(one) for one in (*per_label, total)], axis=1)


def secant_weights(
    ours: Float[np.ndarray, "pair label variant"], theirs: Float[np.ndarray, "pair label variant"]
) -> Float[np.ndarray, "pair label variant"]:
    """Weights over a label's tokens with which the change of log sum exp is exactly the sum of the tokens' changes.

    For two tokens it is the share of the first, averaged along the straight line between the two arms; further tokens
    join one by one. Non-negative, sum 1; the logits are -inf beyond a label's own tokens.
    """
    weight = np.zeros(ours.shape)
    weight[..., 0] = 1.0
    a, b = ours[..., 0], theirs[..., 0]
    for v in range(1, ours.shape[-1]):
        there = np.isfinite(ours[..., v]) & np.isfinite(theirs[..., v])
        gap_a, gap_b = (np.where(there, x[..., v] - y, 0.0) for x, y in ((ours, a), (theirs, b)))
        step = gap_a - gap_b
        near = np.abs(step) < 1e-6
        slope = (np.logaddexp(0, gap_a) - np.logaddexp(0, gap_b)) / np.where(near, 1.0, step)
        share = np.where(near, 1 / (1 + np.exp(-(gap_a + gap_b) / 2)), slope) * there
        weight[..., :v] *= (1 - share)[..., None]
        weight[..., v] = share
        a, b = (np.where(there, np.logaddexp(x, y[..., v]), x) for x, y in ((a, ours), (b, theirs)))
    return weight


def _check_sum(reads: LensReads, components: Components) -> None:
    last = reads.projected[-1].direct
    off = float(np.abs(components.direct.sum(0) - last).max(initial=0.0))
    if off > 1e-4 * max(1.0, float(np.abs(last).max(initial=0.0))):
        raise ProbeError(f"components must sum to the last residual point; they are {off:.2g} off")


def _check_streams(reads: LensReads, rest: Float[np.ndarray, "row token"], blocks: int) -> None:
    # ``rest`` closes the sum whatever the streams hold, so that only its own size can tell that they are wrong.
    if reads.check is None:
        return
    off = float(np.abs(rest / reads.projected[-1].norm[:, None]).max(initial=0.0))
    if off > blocks * reads.check.tolerance:
        raise ProbeError(
            f"attn_out and mlp_out must be what their blocks add to the residual; at {reads.position} they leave up to "
            f"{off:.2g} nats of a logit (allowed: {blocks * reads.check.tolerance:.2g}), so streams and residuals are "
            "not of one pass; run the capture again, or leave the two streams out of capture.streams"
        )


def _block(component: str) -> float:
    kind, _, block = component.partition(" ")
    return float(block) if kind in ("attn", "mlp", "block") else np.nan
