"""What one matrix of products says of its arms, as rows of tidy tables. Knows products and names; reads no residual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from probe.mechanism.geometry.products import (
    FEWEST,
    Products,
    Statistic,
    agreement,
    centred,
    cosines,
    jackknifed,
    norms,
)

Row: TypeAlias = dict[str, object]

METHOD = "products of different case families, jackknife over families"
METHOD_OF_BLOCKS = "products of different blocks of case families, jackknife over blocks"
BELOW_NOISE = "undefined: the estimate of a squared norm is not positive"


@dataclass(frozen=True, eq=False)
class Measured:
    """The products of some arms at one place: ``where`` holds base, stratum, layer, position and view.

    Where ``blocks`` of families were added up, each counts as a family.
    """

    arms: tuple[str, ...]
    products: Products
    where: Mapping[str, object]
    note: str = ""
    blocks: bool = False

    def row(self, value: float, low: float, high: float, /, **own: object) -> Row:
        """One row; a value that is not there is explained."""
        found = self.products
        note = self.note
        if found.n_families < FEWEST:
            what = "blocks of case families" if self.blocks else "case families"
            note = f"undefined: {found.n_families} {what}, an estimate needs {FEWEST}"
        elif np.isnan(value):
            note = BELOW_NOISE
        elif np.isnan(low):
            note = "no interval: undefined without one of the case families"
        method = METHOD_OF_BLOCKS if self.blocks else METHOD
        counted = {"n": found.n_cases, "n_families": found.n_families, "method": method, "note": note}
        return {**own, **self.where, "value": value, "low": low, "high": high, **counted}


def norm_rows(measured: Measured) -> list[Row]:
    """Norm of every arm's common shift, relative to the base (in standard deviations where whitened)."""
    squares, *ends = jackknifed(measured.products, norms, relative=True)
    value = np.sqrt(np.where(squares > 0, squares, np.nan))
    low, high = (np.where(np.isnan(value), np.nan, np.sqrt(np.maximum(end, 0))) for end in ends)
    return [
        measured.row(float(value[i]), float(low[i]), float(high[i]), persona=arm) for i, arm in enumerate(measured.arms)
    ]


def cosine_rows(measured: Measured, personas: Sequence[str]) -> list[Row]:
    """Cosine of the shifts of every two arms, and of the personas' own after their mean is taken out.

    ``chance`` is what the mean over pairs is without any relation: 0, and -1 / (K - 1) for K centred shifts.
    """
    everything = [i for i, _ in enumerate(measured.arms)]
    proper = [i for i, arm in enumerate(measured.arms) if arm in personas]
    rows = _pairs(measured, everything, cosines, "cosine", 0.0)
    if len(proper) > 2:  # two centred shifts are opposite, whatever they are
        rows += _pairs(measured, proper, lambda x: cosines(centred(x)), "centred_cosine", -1 / (len(proper) - 1))
    return rows


def _pairs(measured: Measured, chosen: list[int], statistic: Statistic, measure: str, chance: float) -> list[Row]:
    value, low, high = jackknifed(measured.products, lambda x: statistic(_among(x, chosen)))
    return [
        measured.row(
            float(value[i, j]),
            float(low[i, j]),
            float(high[i, j]),
            persona=measured.arms[chosen[i]],
            other=measured.arms[chosen[j]],
            measure=measure,
            chance=chance,
        )
        for i, j in combinations(range(len(chosen)), 2)
    ]


def agreement_rows(measured: Measured, personas: Sequence[str]) -> list[Row]:
    """Share of the personas' mean squared shift that is common to all of them (see :func:`agreement`)."""
    chosen = [i for i, arm in enumerate(measured.arms) if arm in personas]
    if len(chosen) < 2:
        return []
    found = jackknifed(measured.products, lambda x: agreement(_among(x, chosen)))
    return [measured.row(*(float(one) for one in found), n_personas=len(chosen))]


def wording_rows(measured: Measured, persona_of: Sequence[str]) -> list[Row]:
    """How far the wordings of one persona share one direction, and how far those of different personas do.

    ``within``: mean product of two different wordings of the persona over their mean squared norm. ``between``: mean
    product with wordings of the other personas over the two personas' root mean square norms. ``apart`` is their
    difference: at most nil where a persona is no more than its words.
    """
    names = list(dict.fromkeys(persona_of))
    members = [np.flatnonzero(np.array(persona_of) == name) for name in names]
    rows = []
    for measure, column in (("within", 0), ("between", 1), ("apart", 2)):
        found = jackknifed(measured.products, partial(_wording_agreement, members=members, column=column))
        rows += [
            measured.row(*(float(one[k]) for one in found), persona=name, measure=measure, n_wordings=len(members[k]))
            for k, name in enumerate(names)
            if measure == "within" or len(names) > 1
        ]
    return rows


def _wording_agreement(x: Float[np.ndarray, "*many arm arm"], members: list[np.ndarray], column: int) -> np.ndarray:
    """Of every persona ``within`` (column 0), ``between`` (1) or their difference (2), along the last axis."""
    k = len(members)
    squares = np.stack([norms(_among(x, own)).mean(-1) for own in members], -1)
    squares = np.where(squares > 0, squares, np.nan)
    within = np.stack([agreement(_among(x, own)) for own in members], -1)
    shared = np.zeros((*x.shape[:-2], k, k))
    for i, j in combinations(range(k), 2):
        product = x[..., members[i][:, None], members[j]].mean((-2, -1))
        shared[..., i, j] = shared[..., j, i] = product / np.sqrt(squares[..., i] * squares[..., j])
    between = shared.sum(-1) / (k - 1) if k > 1 else np.full(within.shape, np.nan)
    return np.asarray((within, between, within - between)[column])


def role_style_rows(measured: Measured, cells: Mapping[tuple[str, str], str]) -> list[Row]:
    """Is a style the same direction on two roles, and is it added to the role?

    ``cells`` maps (role, style) to an arm; the plain style is ``""``, else the first. For each style and pair of roles:
    ``style_cosine``, the cosine of (styled - plain) on the one with that on the other, and ``interaction``, the squared
    norm of their difference over the sum of their squared norms: 0 where role and style add up, 1 where the two shifts
    are unrelated, 2 where they are opposite. It may fall below 0 by noise.
    """
    at = {cell: measured.arms.index(arm) for cell, arm in cells.items() if arm in measured.arms}
    roles, styles = (list(dict.fromkeys(cell[k] for cell in at)) for k in (0, 1))
    plain = "" if "" in styles else next(iter(styles), "")
    rows = []
    for style in (one for one in styles if one != plain):
        both = [role for role in roles if (role, style) in at and (role, plain) in at]
        for one, other in combinations(both, 2):
            contrasts = np.zeros((2, len(measured.arms)))
            for k, role in enumerate((one, other)):
                contrasts[k, at[role, style]], contrasts[k, at[role, plain]] = 1, -1
            named = {"style": style, "plain": plain, "role": one, "other_role": other}
            rows += _style_rows(measured, contrasts, named)
    return rows


def _style_rows(measured: Measured, contrasts: np.ndarray, named: Mapping[str, str]) -> list[Row]:
    cosine = jackknifed(measured.products, lambda x: cosines(contrasts @ x @ contrasts.T)[..., 0, 1])
    interaction = jackknifed(measured.products, lambda x: _interaction(contrasts @ x @ contrasts.T))
    measures = {"style_cosine": cosine, "interaction": interaction}
    return [
        measured.row(*(float(one) for one in found), **named, measure=measure) for measure, found in measures.items()
    ]


def _interaction(x: Float[np.ndarray, "*many arm arm"]) -> np.ndarray:
    total = norms(x).sum(-1)
    return np.asarray(1 - 2 * x[..., 0, 1] / np.where(total > 0, total, np.nan))


def _among(x: Float[np.ndarray, "*many arm arm"], chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    places = np.asarray(chosen)
    return np.asarray(x[..., places[:, None], places])
