"""Estimated subspaces judged by what exchanging them does on a model: how much of a persona's effect is in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.mechanism.steering.label_reads import outcomes
from probe.mechanism.steering.subspaces import principal_cosines, score_subspace
from probe.stages.steer_bench import Bench
from probe.stages.steer_reads import Edits
from probe.stages.steer_scene import Prompted
from probe.values import Case, Intervention, ProbeError

Basis = Float[np.ndarray, "k width"]


def subspace_scores(
    bench: Bench,
    persona: str,
    layer: int,
    subspaces: Mapping[str, Basis],
    *,
    known: Basis | None = None,
    cases: Sequence[Case] | None = None,
) -> pd.DataFrame:
    """How much of a persona's effect on the labels each subspace finds, exchanged alone at the prompt's end.

    The rows of each are orthonormal. Effects are shares of what exchanging ``known`` does, or the whole residual where
    None is given; on the held-out cases unless others are named. Tidy: subspace, k, share, share_low, share_high,
    complement, complement_low, complement_high (Fieller sets), cosines (principal, with ``known``), n, note.

    Raises:
        ProbeError: the bench is at another site than the prompt's end.
    """
    if (site := bench.scene.request.site) != "prompt_end":
        raise ProbeError(
            f"subspaces are exchanged at the prompt's end, and this bench reads residuals at {site!r}, another token; "
            "make it with SteerRequest(site='prompt_end')"
        )
    held_out = list(bench.scene.parts["test"] if cases is None else cases)
    judged = bench.scene.judged(held_out)
    layers = (layer,)
    donor = bench.read(Prompted(persona), held_out, layers=layers).resid
    plain = bench.read(bench.base, held_out, layers=layers).resid
    theirs, own = (one[0, 0].astype(np.float64) for one in (donor, plain))
    whole = np.eye(theirs.shape[1]) if known is None else known
    arms: list[list[Edits]] = []
    for h_donor, h_own in zip(theirs, own, strict=True):
        edits: list[Edits] = [_exchanged(layer, h_own, h_donor, whole)]
        for basis in subspaces.values():
            edits += [_exchanged(layer, h_own, h_donor, basis), _exchanged(layer, h_donor, h_own, basis)]
        arms.append(edits)
    reads = bench.read(bench.base, held_out, arms, per_case=True, what=f"{persona}: subspaces")
    y = [next(iter(outcomes(logp, judged).values())) for logp in reads.logp]
    rows = []
    for i, (name, basis) in enumerate(subspaces.items()):
        cosines = () if known is None else principal_cosines(basis, known)
        found = score_subspace(y[2 + 2 * i], y[3 + 2 * i], y[1], y[0], judged.family, cosines=cosines)
        row: dict[str, object] = {"persona": persona, "layer": layer, "subspace": name, "k": len(basis)}
        for what, one in (("share", found.share), ("complement", found.complement)):
            row |= {what: one.value, f"{what}_low": one.low, f"{what}_high": one.high}
        rows.append(row | {"cosines": found.cosines, "n": found.share.n, "note": found.share.note})
    return pd.DataFrame(rows)


def _exchanged(layer: int, kept: np.ndarray, taken: np.ndarray, basis: Basis) -> Edits:
    """The residual with one vector's component in a span, and the other's outside it."""
    vector = kept + (taken - kept) @ basis.T @ basis
    return (Intervention(layer, "patch", vector.astype(np.float32), position="prompt_end"),)
