"""An open store as activations for the analyses of mechanism. Imports no torch; captures nothing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from probe.behaviour.pairing import SHARED
from probe.mechanism import Activations, families_of
from probe.mechanism.activations import LineSums
from probe.store import Store, View
from probe.store.set_reading import SiteSums
from probe.store.set_reading import added_up as sums_of_view
from probe.values.cases import is_content_free


def activations(source: Store | View) -> Activations:
    """The cells of a store, or of a selection of it, whose answer was generated, with their residual stream.

    Given texts and interventions are left out: they are conditions of their own. So are, of a store, the cases whose
    input says nothing (:func:`without_content`); a selection keeps them.
    """
    view = analysed(source)
    table = view.table()
    sites = view.frame.sites
    layers, positions = tuple(sites.layers("resid")), tuple(view.frame.layout.positions)
    width = sites.site("resid", positions[0], [layers[0]]).d_model

    def read(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        resid = view.resid(layer=layer, position=position, missing="drop")
        return np.asarray(resid.kept), np.asarray(resid)

    return Activations(table, layers, positions, width, read)


def added_up(store: Store) -> Activations:
    """The cells that :func:`activations` gives, of a store that keeps sums over them: a line for each sum.

    A line is one persona under one condition, with the cases of one stratum whose families lie in one block; its
    ``case`` and ``family`` are the block.

    Raises:
        StoreError: a sum holds other rows too.
    """
    view = analysed(store)
    sums = sums_of_view(view)
    firsts = [line.first for line in sums.lines]
    cells = view.table()
    table = cells.iloc[firsts][[name for name in _OF_A_LINE if name in cells]].reset_index(drop=True)
    table = table.assign(
        case=[f"{line.stratum}\x1f{line.block}" for line in sums.lines], family=[str(line.block) for line in sums.lines]
    )
    table.attrs = cells.attrs
    case, family = cells["case"].to_numpy(dtype=object), families_of(cells)
    kind = table.groupby(["persona", "condition"], sort=False).ngroup().to_numpy()
    layout = view.frame.layout

    @lru_cache(maxsize=1)
    def at(layer: int, position: str) -> SiteSums:
        return sums.at(layer, position) or SiteSums.nothing(layout.d_model or 0)

    def read(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        found = at(layer, position)
        return found.lines, found.sums.mean

    named: dict[str, list[tuple[frozenset[str], ...]]] = {}

    def lines(layer: int, position: str) -> LineSums:
        found = at(layer, position)
        if position not in named:  # every layer has the same rows
            named[position] = [tuple(frozenset(own[rows].tolist()) for rows in found.rows) for own in (case, family)]
        cases, families = named[position]
        return LineSums(found.sums, cases, families, kind[found.lines])

    return Activations(table, layout.layers, layout.positions, layout.d_model or 0, read, lines)


_OF_A_LINE = ("persona", "role", "style", "stratum", "condition", "wording", "edition", *SHARED)


def analysed(source: Store | View) -> View:
    """The rows that analyses count: see :func:`activations`."""
    view = source.select(given="", intervention="")
    if isinstance(source, Store) and (free := without_content(source)):
        kept = dict.fromkeys(str(case["id"]) for case in source.plan.cases if str(case["id"]) not in free)
        view = view.select(case=list(kept))
    return view


def without_content(store: Store) -> frozenset[str]:
    """The cases whose input says nothing (``N/A``): they calibrate the lens, and no other analysis counts them.

    None of them where the study has no other case.
    """
    cases = {str(case["id"]): is_content_free(str(case.get("text") or "x")) for case in store.plan.cases}
    return frozenset() if all(cases.values()) else frozenset(name for name, free in cases.items() if free)
