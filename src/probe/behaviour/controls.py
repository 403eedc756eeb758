"""Which personas are the neutral controls, and the score of each of their wordings. Knows names; knows no statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probe.behaviour.columns import text_of
from probe.values import ProbeError
from probe.values.nearest import nearest

CONTROLS = "controls"
"""The name of the base that is the mean of the control wordings."""

ROLE = "control"
"""The role of a persona whose wordings are neutral controls."""


def control_personas(table: pd.DataFrame, controls: Sequence[str] | None = None) -> tuple[str, ...]:
    """The personas whose wordings are the neutral controls, empty where there are none.

    They come from the argument, else from ``table.attrs["controls"]``, else they are those with the role ``control``.

    Raises:
        ProbeError: a persona that was named is not in the table.
    """
    persona = text_of(table, "persona")
    known = tuple(dict.fromkeys(persona.tolist()))
    given = controls if controls is not None else table.attrs.get("controls")
    if given is None:
        return tuple(dict.fromkeys(persona[text_of(table, "role") == ROLE].tolist()))
    for name in given:
        if name not in known:
            raise ProbeError(f"the control persona {name!r} is not in the table. {nearest(name, known, 'persona')}")
    return tuple(given)


def wording_of(persona: np.ndarray, wording: np.ndarray) -> np.ndarray:
    """One name per (persona, wording): what varies when the same persona is said in other words."""
    return np.array([f"{p}\x1f{w}" for p, w in zip(persona, wording, strict=True)], dtype=object)
