"""Label contrasts of every cell at every layer, by the lens and by a held-out readout. Knows cells; knows no store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from probe.behaviour.columns import text_of
from probe.behaviour.pairing import SHARED
from probe.mechanism.activations import Activations
from probe.mechanism.lens.head import (
    LabelHead,
    LensCheck,
    Projected,
    check_lens,
    contrasts,
    label_scores,
    likeliest,
    project,
)
from probe.mechanism.linear.held_out import held_out_readout, parts_of
from probe.mechanism.splits import families_of, fold_of
from probe.values import ProbeError

FOLDS = 5
"""Folds of case families behind the held-out readout and the mean over training cases."""

CONTENT_FREE = "content-free case"
TRAINING_MEAN = "mean over training cases"


def no_lens(position: str) -> str:
    """Why no cell has a lens at a position."""
    return (
        "a lens reads labels that are one token whose unembedding the store's readout holds, and no cell has such "
        f"labels at {position} (labels scored as continuations have none; stores of earlier versions lack those of "
        "written answers: capture into a fresh store)"
    )


@dataclass(frozen=True, eq=False)
class LabelSite:
    """Label reads at one position, for every row of a table of cells.

    ``places``: where each label's tokens stand in the head (-1 where the row has no lens), by semantic option.
    ``logp``: the label log-probabilities that the pass recorded, in nats, NaN where the site is absent.
    """

    position: str
    places: Int[np.ndarray, "row label variant"]
    logp: Float[np.ndarray, "row label"]


@dataclass(frozen=True, eq=False)
class LensReads:
    """What lens and held-out readout make of every cell at every layer of one position, in nats before the softcap.

    Rows are those of ``table``, content-free cases left out. Contrasts are those of ``contrast_names``: every option
    minus the middle one. ``lens`` are the plain contrasts; ``offset`` their value on the base persona's content-free
    case (or ``baseline`` in words), and ``offset_final`` that of ``final``, the model's own contrasts, which the
    held-out ``readout`` predicts from the layer (per part of the personas that is left out; see ``HeldOut``).
    ``projected`` and ``places`` are what the lens read them from.
    """

    position: str
    options: tuple[str, ...]
    layers: tuple[int, ...]
    table: pd.DataFrame
    lens: Float[np.ndarray, "layer row contrast"]
    offset: Float[np.ndarray, "layer row contrast"]
    readout: Float[np.ndarray, "layer part row contrast"]
    part: Int[np.ndarray, " row"]
    final: Float[np.ndarray, "row contrast"]
    offset_final: Float[np.ndarray, "row contrast"]
    baseline: str
    check: LensCheck | None
    projected: tuple[Projected, ...]
    places: Int[np.ndarray, "row label variant"]

    @property
    def lens_label(self) -> Int[np.ndarray, "layer row"]:
        """The label that the lens puts first, on the scale of the last layer: the layer's own offset exchanged."""
        return likeliest(self.lens - self.offset + self.offset_final)

    @property
    def own_readout(self) -> Float[np.ndarray, "layer row contrast"]:
        """The held-out readout of each row, by the fit that saw neither its case nor its persona."""
        return np.asarray(self.readout[:, self.part, np.arange(len(self.part))])

    @property
    def readout_label(self) -> Int[np.ndarray, "layer row"]:
        """The label that the held-out readout puts first; -1 where nothing could be fitted."""
        return likeliest(self.own_readout)


@dataclass(frozen=True)
class LensQuestion:
    """How label contrasts are read: against which base persona, with which cases taken as content-free.

    ``last`` is the model's last residual point, ``dtype`` the coarsest number format on the way, ``seed`` that of the
    split into folds, ``content_free`` the ids of cases whose input says nothing.
    """

    base: str
    last: int
    dtype: str = "float32"
    seed: int = 0
    content_free: frozenset[str] = frozenset()


def read_lens(acts: Activations, head: LabelHead, site: LabelSite, asked: LensQuestion) -> LensReads:
    """Label contrasts at every captured layer of one position; the lens is checked at the last point, where captured.

    Raises:
        ProbeError: no row has a lens here, every case is content-free, or the lens does not reproduce the model's own
            label contrasts.
    """
    whole, rows, last = acts.layers[-1] == asked.last, *_rows_with_lens(acts, site)
    places, logp = site.places[rows], site.logp[rows].astype(np.float64)
    check, final = None, contrasts(logp)
    if whole:  # the softcap can be undone only where the logits themselves are there
        at_last = project(head, last)
        check = _checked(check_lens(head, at_last, places, logp, site.position, asked.dtype))
        final = contrasts(label_scores(at_last.logits(head), places))
    cells = acts.table.iloc[rows].reset_index(drop=True)
    kept = ~cells["case"].astype(str).isin(asked.content_free).to_numpy()
    if not kept.any():
        raise ProbeError(f"every case at {site.position} is taken as content-free; name fewer with --content-free")
    fold = _folds(cells, kept, asked.seed)
    table = cells[kept].reset_index(drop=True)
    persona = text_of(table, "persona")
    projected, readout = [], []
    for found in acts.sites(site.position):
        x = found.x[np.isin(found.places, rows)]
        projected.append(project(head, x))
        readout.append(held_out_readout(x[kept], final[kept], fold[kept], persona).by_part)
    lens = np.stack([contrasts(label_scores(one.logits(head), places)) for one in projected])
    offsets, baseline = _offsets(np.concatenate([lens, final[None]]), cells, ~kept, fold, asked.base)
    return LensReads(
        position=site.position,
        options=tuple(map(str, acts.table.attrs["options"])),
        layers=acts.layers,
        table=table,
        lens=lens[:, kept],
        offset=offsets[:-1, kept],
        readout=np.stack(readout),
        part=parts_of(persona),
        final=final[kept],
        offset_final=offsets[-1, kept],
        baseline=baseline,
        check=check,
        projected=tuple(Projected(one.direct[kept], one.norm[kept]) for one in projected),
        places=places[kept],
    )


def _rows_with_lens(acts: Activations, site: LabelSite) -> tuple[Int[np.ndarray, " row"], np.ndarray]:
    """The rows of the table that have the position and a lens there, and their residuals at the last captured layer."""
    found = acts.at(acts.layers[-1], site.position)
    known = ((site.places >= 0).any((1, 2)) & np.isfinite(site.logp).all(1))[found.places]
    if not known.any():
        raise ProbeError(no_lens(site.position))
    return found.places[known], found.x[known]


def _checked(check: LensCheck) -> LensCheck:
    if not check.passed:
        raise ProbeError(
            f"at the last residual point the lens must give the label contrasts that the pass recorded; at "
            f"{check.position} they differ by up to {check.error:.2g} nats (allowed: {check.tolerance:.2g}) over "
            f"{check.rows} cells, so residuals and readout are not of one model; run the capture again"
        )
    return check


def _folds(cells: pd.DataFrame, kept: Bool[np.ndarray, " row"], seed: int) -> Int[np.ndarray, " row"]:
    """The fold of each row's case family; -1 for content-free cases, 0 throughout where there are too few families."""
    fold = np.full(len(cells), -1)
    family, stratum = families_of(cells)[kept], text_of(cells, "stratum")[kept]
    folds = min(FOLDS, len(set(family)))
    fold[kept] = fold_of(family, folds, seed, stratum) if folds > 1 else 0
    return fold


def _offsets(
    values: Float[np.ndarray, "layer row contrast"],
    cells: pd.DataFrame,
    free: Bool[np.ndarray, " row"],
    fold: Int[np.ndarray, " row"],
    base: str,
) -> tuple[Float[np.ndarray, "layer row contrast"], str]:
    """The base persona's value on content-free cases, else its mean over cases of the other folds, under the same
    instruction, rotation, placement and prefix. Always the *base's*: subtracting a persona's own would take away what
    the persona does. NaN where the base has no such row.
    """
    persona = text_of(cells, "persona")
    theirs = persona == base if (persona == base).any() else np.full(len(cells), True)
    told = [cells[name].astype(str) for name in SHARED if name in cells and name not in ("seed", "given")]
    key = pd.concat(told, axis=1).agg("\x1f".join, axis=1).to_numpy() if told else np.full(len(cells), "")
    by_case, several = bool(free[theirs].any()), fold.max() > 0
    out = np.full(values.shape, np.nan)
    for name in np.unique(key):
        for one in np.unique(fold):
            rows = (key == name) & (fold == one)
            among = theirs & (key == name) & (free if by_case else ~free & ((fold != one) | (not several)))
            if among.any() and rows.any():
                out[:, rows] = values[:, among].mean(1, keepdims=True)
    return out, CONTENT_FREE if by_case else TRAINING_MEAN
