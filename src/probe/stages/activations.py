"""An open store as activations for the analyses of mechanism. Imports no torch; captures nothing."""

from __future__ import annotations

import numpy as np

from probe.mechanism import Activations
from probe.store import Store, View


def activations(source: Store | View) -> Activations:
    """The cells of a store, or of a selection of it, whose answer was generated, with their residual stream.

    Given texts are left out: they are a condition of their own.
    """
    view = source.select(given="")
    table = view.table()
    sites = view.frame.sites
    layers, positions = tuple(sites.layers("resid")), tuple(view.frame.layout.positions)
    width = sites.site("resid", positions[0], [layers[0]]).d_model

    def read(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        resid = view.resid(layer=layer, position=position, missing="drop")
        return np.asarray(resid.kept), np.asarray(resid)

    return Activations(table, layers, positions, width, read)
