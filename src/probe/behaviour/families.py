"""Families of tests: what was decided beforehand, and the correction for many tests. Knows a table of comparisons and
its names; knows no score or pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from probe.behaviour.significance import benjamini_hochberg, holm
from probe.values import ALL, ProbeError
from probe.values.nearest import nearest

CONFIRMATORY, EXPLORATORY = "confirmatory", "exploratory"
DIRECTIONS = ("either", "greater", "less")


@dataclass(frozen=True)
class Confirm:
    """A contrast that was decided on beforehand; ``direction`` ``greater`` or ``less`` makes its test
    one-sided."""

    persona: str
    metric: str
    base: str
    stratum: str = ALL
    direction: str = "either"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names the row of the table."""
        return (self.metric, self.persona, self.base, self.stratum)


def read_confirm(
    given: Iterable[Confirm | Mapping[str, str]], known: Mapping[str, Sequence[str]], base: str
) -> list[Confirm]:
    """The contrasts decided beforehand, checked against the names of this comparison.

    ``known`` lists the personas, metrics, bases and strata that may be named; ``base`` is that of a contrast without
    one.

    Raises:
        ProbeError: a key or a name is unknown (the nearest is named), a contrast lacks its persona or metric, or one is
            given twice.
    """
    names = tuple(known_field.name for known_field in fields(Confirm))
    found: list[Confirm] = []
    for entry in given:
        said = vars(entry) if isinstance(entry, Confirm) else dict(entry)
        for key in said:
            if key not in names:
                raise ProbeError(f"a contrast to confirm has no {key!r}. {nearest(key, names, 'key')}")
        if lack := [key for key in ("persona", "metric") if key not in said]:
            raise ProbeError(f"a contrast to confirm names its persona and metric; {dict(said)} lacks {lack}")
        contrast = Confirm(**{"base": base, **said})
        for key, choices in known.items():
            value = getattr(contrast, key)
            if value not in choices:
                raise ProbeError(
                    f"the {key} {value!r} of a contrast to confirm is not compared here. "
                    f"{nearest(value, tuple(choices), key)}"
                )
        if contrast.key in [other.key for other in found]:
            raise ProbeError(f"a contrast to confirm may be given once; {contrast.key} is there twice")
        if contrast.direction not in DIRECTIONS:
            remedy = nearest(contrast.direction, DIRECTIONS, "direction")
            raise ProbeError(f"{contrast.direction!r} is no direction of a contrast. {remedy}")
        found.append(contrast)
    return found


def one_sided(p: float, difference: float, direction: str) -> float:
    """One-sided p from the two-sided one of a symmetric test."""
    along = (difference > 0) == (direction == "greater") and difference != 0
    return p / 2 if along else 1 - p / 2


def adjusted(result: pd.DataFrame) -> pd.DataFrame:
    """``p_holm`` (familywise) and ``p_bh`` (false discovery rate), each family of the column ``family`` on its own."""
    result = result.assign(p_holm=np.nan, p_bh=np.nan)
    for name in (CONFIRMATORY, EXPLORATORY):
        rows = (result["family"] == name) & result["p"].notna()
        raw = result.loc[rows, "p"].tolist()
        result.loc[rows, "p_holm"], result.loc[rows, "p_bh"] = holm(raw), benjamini_hochberg(raw)
    return result


def signs_differ(part: pd.DataFrame) -> bool:
    """Does the pool hide what the strata show, in the rows of one persona, base and metric?

    Yes where a stratum's interval excludes 0 and another one lies wholly on the other side of 0, or the pooled
    difference does. Two estimates that merely straddle 0 are no disagreement.
    """
    up, down = bool((part["low"] > 0).any()), bool((part["high"] < 0).any())
    pool = part.loc[part["stratum"] == ALL, "difference"]
    return (up and (down or bool((pool < 0).any()))) or (down and bool((pool > 0).any()))


def with_signs(result: pd.DataFrame) -> pd.DataFrame:
    """The table with the column ``signs_differ``."""
    names = ["metric", "persona", "base"]
    marks = {key: signs_differ(part) for key, part in result.groupby(names, sort=False)}
    keys = zip(*(result[name] for name in names), strict=True)
    return result.assign(signs_differ=np.array([marks[key] for key in keys], dtype=bool))
