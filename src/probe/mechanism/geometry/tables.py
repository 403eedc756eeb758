"""Where personas lie in the residual stream, layer by layer. Knows cells and their residuals; knows no store or model.

Every figure is a function of the unbiased inner products of paired shifts (:mod:`probe.mechanism.geometry.products`),
against the base persona and against the mean of the control wordings, in three views
(:mod:`probe.mechanism.geometry.views`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd

from probe.behaviour.controls import CONTROLS, ROLE, control_personas
from probe.mechanism.activations import Activations, LineSums, SiteRows
from probe.mechanism.geometry.arms import ROUNDING, ShiftRows, shift_rows
from probe.mechanism.geometry.products import Products, jackknifed, norms
from probe.mechanism.geometry.rows import (
    Measured,
    Row,
    agreement_rows,
    cosine_rows,
    norm_rows,
    role_style_rows,
    wording_rows,
)
from probe.mechanism.geometry.stability import bootstrap, gram_of_families, split_half
from probe.mechanism.geometry.summed import PROJECTED, products_of_lines, sized, views_of
from probe.mechanism.geometry.views import VIEWS, products_in
from probe.values import ALL

PLACEBO = "placebo"
"""The role of a persona that says nothing of a person: a control, but no neutral wording."""


@dataclass(frozen=True, eq=False)
class GeometryTables:
    """Tidy tables with base, stratum, layer, position, view, value, low, high, n (cases), n_families, method, note.

    ``norms`` (per persona; ``reworded`` is the same of one control wording against the mean of the others, root mean
    square over them), ``cosines`` (per pair: ``measure``, ``chance``), ``agreement`` (what all personas share),
    ``wordings`` (what the wordings of one persona share), ``role_style`` and ``stability`` (whose ``low`` and ``high``
    describe draws). A table is empty where the cells cannot have it.
    """

    norms: pd.DataFrame = field(default_factory=pd.DataFrame)
    cosines: pd.DataFrame = field(default_factory=pd.DataFrame)
    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)
    wordings: pd.DataFrame = field(default_factory=pd.DataFrame)
    role_style: pd.DataFrame = field(default_factory=pd.DataFrame)
    stability: pd.DataFrame = field(default_factory=pd.DataFrame)


def geometry(
    activations: Activations,
    *,
    base: str = "none",
    controls: Sequence[str] | None = None,
    seed: int = 0,
    rng: np.random.Generator | None = None,
) -> GeometryTables:
    """The geometry of every persona at every captured layer and position.

    ``controls`` are the personas whose wordings are the neutral controls, by default those of the role ``control``;
    a persona is compared with the base persona where it was captured, and with the mean of the controls where there
    are any. ``seed`` splits the families that fit a view from those it measures; ``rng`` draws halves and bootstrap
    samples (by default seeded with 0), the same ones at every layer.

    Raises:
        ProbeError: a control persona is not in the table.
    """
    draws = int((rng or np.random.default_rng(0)).integers(2**63))
    found: dict[str, list[Row]] = {one.name: [] for one in fields(GeometryTables)}
    neutral = control_personas(activations.table, controls)
    for position in activations.positions:
        first = activations.at(activations.layers[0], position)
        table = activations.table.iloc[first.places].reset_index(drop=True)
        table.attrs = {}  # pandas copies them, a whole study, with every selection of rows
        asked = _Asked.of(table, base, neutral)
        asked = asked if first.lines is None else asked.sized(first.lines)
        for layer in activations.layers:
            site = first if layer == first.layer else activations.at(layer, position)
            assert np.array_equal(site.places, first.places), "a position is present at every layer or at none"
            for name, rows in asked.at(site, seed, draws):
                found[name] += rows
    return GeometryTables(**{name: pd.DataFrame(rows) for name, rows in found.items()})


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is compared at one position: the rows of every arm, once for all layers."""

    personas: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]
    against: tuple[ShiftRows, ...]
    worded: ShiftRows | None
    reworded: ShiftRows | None

    @classmethod
    def of(cls, table: pd.DataFrame, base: str, neutral: Sequence[str]) -> _Asked:
        persona = table["persona"].to_numpy(dtype=object)
        names = tuple(dict.fromkeys(persona.tolist()))
        described = table.drop_duplicates("persona").set_index("persona")
        roles, styles = (_told(described, name) for name in ("role", "style"))
        masks = {name: persona == name for name in names}
        control = np.isin(persona, list(neutral))
        others = {name: mask for name, mask in masks.items() if name != base}
        against = [shift_rows(table, others, base, masks[base])] if base in masks and others else []
        if control.any():
            proper = {name: mask for name, mask in masks.items() if name not in neutral}
            against.append(shift_rows(table, proper, CONTROLS, control))
        worded = {k: mask for k, mask in _by_wording(table, masks).items() if k[0] not in (base, *neutral)}
        several = {k for k in worded if sum(k[0] == other[0] for other in worded) > 1}
        worded = {k: mask for k, mask in worded.items() if k in several}
        reworded = _by_wording(table, {name: masks[name] for name in neutral if name in masks})
        left = {_key(k): control & ~mask for k, mask in reworded.items()}
        return cls(
            tuple(name for name in names if name not in (base, *neutral) and roles[name] not in (ROLE, PLACEBO)),
            {(roles[name], styles[name]): name for name in names if roles[name]},
            tuple(one for one in against if one.arms),
            _named(table, worded, base, masks[base]) if worded and base in masks else None,
            _named(table, reworded, CONTROLS, left) if len(reworded) > 2 else None,
        )

    def sized(self, lines: LineSums) -> _Asked:
        """The same, where the rows are lines that stand for many cases."""
        worded, reworded = (
            None if one is None or not one.arms else sized(one, lines) for one in (self.worded, self.reworded)
        )
        return replace(self, against=tuple(sized(one, lines) for one in self.against), worded=worded, reworded=reworded)

    def at(self, site: SiteRows, seed: int, draws: int) -> Iterator[tuple[str, list[Row]]]:
        """The rows of every table at one layer."""
        here: dict[str, object] = {"layer": site.layer, "position": site.position}
        for whole in self.against:
            for stratum in _strata(whole):
                rows = whole.only(stratum)
                for measured in _measured(rows, site, {"base": whole.base, "stratum": stratum} | here, seed):
                    spread = self._reworded(site, stratum, str(measured.where["view"]), seed, whole.base)
                    yield "norms", [row | {"reworded": spread} for row in norm_rows(measured)]
                    yield "agreement", agreement_rows(measured, self.personas)
                    if whole is self.against[0]:  # the base cancels in a difference of two personas
                        yield "role_style", role_style_rows(measured, self.cells)
                    if stratum == ALL:
                        yield "cosines", cosine_rows(measured, self.personas)
            yield "stability", _stability_rows(whole, site, {"base": whole.base, "stratum": ALL} | here, draws)
        if self.worded is not None and self.worded.arms:
            persona_of = [arm.partition(_BETWEEN)[0] for arm in self.worded.arms]
            where = {"base": self.worded.base, "stratum": ALL} | here
            for measured in _measured(self.worded, site, where, seed):
                yield "wordings", wording_rows(measured, persona_of)

    def _reworded(self, site: SiteRows, stratum: str, view: str, seed: int, base: str) -> float:
        """Root mean square norm of one control wording against the mean of the others; NaN where there are too few."""
        if self.reworded is None or base != CONTROLS:
            return np.nan
        rows = self.reworded.only(stratum)
        found = _products(view.removesuffix(PROJECTED), rows, site, rows.shifts(site.x), seed)
        squares = jackknifed(found, norms, relative=True)[0] if found is not None and len(rows.arms) else np.array([])
        mean = float(squares.mean()) if len(squares) else np.nan
        return float(np.sqrt(mean)) if mean > 0 else np.nan


def _measured(rows: ShiftRows, site: SiteRows, where: Mapping[str, object], seed: int) -> Iterator[Measured]:
    """The products of some arms at one layer, in every view that can be fitted there."""
    shifts, lines = rows.shifts(site.x), site.lines
    for view, name in [(view, view) for view in VIEWS] if lines is None else views_of(lines):
        found = _products(view, rows, site, shifts, seed)
        if found is not None:
            same = "the shift is the same in all cases: there is no sampling error" if _constant(shifts) else ""
            note = "; ".join(x for x in (rows.note, same) if x)
            yield Measured(rows.arms, found, {**where, "view": name}, note, lines is not None)


def _products(view: str, rows: ShiftRows, site: SiteRows, shifts: np.ndarray, seed: int) -> Products | None:
    if site.lines is not None:
        return products_of_lines(view, rows, site, shifts, seed)
    return products_in(view, shifts, rows.base_of(site.x), rows.family, seed)


def _constant(shifts: np.ndarray) -> bool:
    """Does every arm shift every case alike, as where the site stands before the case?"""
    return shifts.shape[1] > 1 and bool(np.ptp(shifts, axis=1).max(initial=0) <= ROUNDING * np.abs(shifts).max())


def _stability_rows(rows: ShiftRows, site: SiteRows, where: Mapping[str, object], draws: int) -> list[Row]:
    """Split-half and bootstrap stability of every arm's direction, and its expected cosine with the true one."""
    found: list[Row] = []
    n = int(rows.sizes.sum())
    for arm, shift in zip(rows.arms, rows.shifts(site.x), strict=True):
        gram = gram_of_families(shift * rows.sizes[:, None], rows.family)
        plain = gram.sum()
        member = np.unique(rows.family.astype(str), return_inverse=True)[1]
        sizes = np.bincount(member, weights=rows.sizes).astype(int)
        crossed = (plain - np.trace(gram)) / max(n**2 - (sizes**2).sum(), 1)
        truth = min(float(np.sqrt(crossed / (plain / n**2))), 1.0) if crossed > 0 else np.nan
        for method, function in (("split-half", split_half), ("bootstrap", bootstrap)):
            stable = function(gram, np.random.default_rng(draws), sizes=sizes)
            note = "undefined: fewer than four case families, or no shift" if np.isnan(stable.value) else rows.note
            if np.isnan(stable.floor) and not np.isnan(stable.value):
                note = "; ".join(filter(None, (rows.note, "no floor: the shift is the same in all cases")))
            counted = {"n": n, "n_families": len(gram), "method": method, "note": note}
            found.append({"persona": arm, **where, **vars(stable), "with_truth": truth, **counted})
    return found


_BETWEEN = "\x1f"


def _key(wording: tuple[str, object]) -> str:
    return f"{wording[0]}{_BETWEEN}{wording[1]}"


def _named(
    table: pd.DataFrame,
    arms: Mapping[tuple[str, object], np.ndarray],
    base: str,
    bases: np.ndarray | Mapping[str, np.ndarray],
) -> ShiftRows:
    return shift_rows(table, {_key(k): mask for k, mask in arms.items()}, base, bases)


def _by_wording(table: pd.DataFrame, masks: Mapping[str, np.ndarray]) -> dict[tuple[str, object], np.ndarray]:
    """The rows of every wording of every persona; one wording where the table does not tell them apart."""
    wording = table["wording"].to_numpy() if "wording" in table else np.zeros(len(table), dtype=int)
    found = ((name, mask, one) for name, mask in masks.items() for one in np.unique(wording[mask]).tolist())
    return {(name, one): mask & (wording == one) for name, mask, one in found}


def _told(described: pd.DataFrame, name: str) -> dict[str, str]:
    values = described[name].fillna("") if name in described else pd.Series("", index=described.index)
    return {str(persona): str(value) for persona, value in values.items()}


def _strata(rows: ShiftRows) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(rows.stratum.tolist()))
    return (ALL, *found) if len(found) > 1 else (ALL,)
