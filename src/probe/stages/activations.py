"""An open store as activations for the analyses of mechanism. Imports no torch; captures nothing."""

from __future__ import annotations

import numpy as np

from probe.mechanism import Activations
from probe.mechanism.lens.reads import is_content_free
from probe.store import Store, View


def activations(source: Store | View) -> Activations:
    """The cells of a store, or of a selection of it, whose answer was generated, with their residual stream.

    Given texts and interventions are left out: they are conditions of their own. So are, of a store, the cases whose input says nothing
    (:func:`without_content`); a selection keeps them.
    """
    view = source.select(given="", intervention="")
    if isinstance(source, Store) and (free := without_content(source)):
        kept = dict.fromkeys(str(case["id"]) for case in source.plan.cases if str(case["id"]) not in free)
        view = view.select(case=list(kept))
    table = view.table()
    sites = view.frame.sites
    layers, positions = tuple(sites.layers("resid")), tuple(view.frame.layout.positions)
    width = sites.site("resid", positions[0], [layers[0]]).d_model

    def read(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        resid = view.resid(layer=layer, position=position, missing="drop")
        return np.asarray(resid.kept), np.asarray(resid)

    return Activations(table, layers, positions, width, read)


def without_content(store: Store) -> frozenset[str]:
    """The cases whose input says nothing (``N/A``): they calibrate the lens, and no other analysis counts them.

    None of them where the study has no other case.
    """
    cases = {str(case["id"]): is_content_free(str(case.get("text") or "x")) for case in store.plan.cases}
    return frozenset() if all(cases.values()) else frozenset(name for name, free in cases.items() if free)
