"""Outcomes of cells, read from a table. Knows which columns mean what; knows no store, model or statistic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.behaviour.columns import (
    ABSENT,
    REMEDY,
    labels_of,
    log_softmax_of,
    numbers_of,
    sites_of,
    status_of,
    text_of,
)
from probe.behaviour.pairing import SHARED
from probe.values import ALL, ProbeError

Need: TypeAlias = Literal["nothing", "high-risk option", "rank of the options"]
"""What a measure needs to know of the options."""

ROUNDED = 0.01
"""Nats by which ``y_latent`` may trail the best ``logp_<label>``: a table may hold these rounded."""

Told: TypeAlias = Literal[
    "y_gen", "y_latent", "logp_<label>", "stated_logp_<label>", "label_mass", "entropy", "letter_first"
]
"""A column, or a family of columns, that a table may lack. ``y_latent`` follows from ``logp_<label>``."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What happened in each cell, one entry per table row, labels as indices into ``options``.

    ``ranked``: the options are known to stand in rising urgency. ``high`` is the index of the high-risk one, None where
    it is not known; what needs either is undefined without it, never guessed.

    ``stated`` and ``latent`` are -1 where there is no such label. ``latent_logp`` is the log-softmax over the labels
    (nats) at the end of the prompt, ``stated_logp`` that at the answer site; rows are NaN where the site is absent.
    ``site_logp`` holds the same for further answer sites, named by ``sites``. ``mass`` is the full-vocabulary
    probability on all labels at the end of the prompt, ``entropy`` (nats) that of the whole next-token distribution
    there, ``letter_first`` 1 where a parsed answer began with its letter; all NaN where unknown. ``told`` names what
    the table has.
    """

    options: tuple[str, ...]
    ranked: bool
    high: int | None
    persona: np.ndarray
    stratum: np.ndarray
    case: np.ndarray
    condition: np.ndarray
    status: np.ndarray
    reference: Int[np.ndarray, " row"]
    stated: Int[np.ndarray, " row"]
    latent: Int[np.ndarray, " row"]
    latent_logp: Float[np.ndarray, "row label"]
    stated_logp: Float[np.ndarray, "row label"]
    mass: Float[np.ndarray, " row"]
    entropy: Float[np.ndarray, " row"]
    letter_first: Float[np.ndarray, " row"]
    wording: np.ndarray
    rotation: np.ndarray
    seed: np.ndarray
    sites: tuple[str, ...]
    site_logp: Float[np.ndarray, "row site label"]
    told: frozenset[Told]

    def __len__(self) -> int:
        return len(self.reference)

    def take(self, rows: np.ndarray) -> Outcomes:
        """These rows only: a boolean mask or row numbers."""
        entries = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x[rows] for name, x in entries.items() if isinstance(x, np.ndarray)})

    def lacks(self, need: Need) -> str:
        """Why a measure with this need is undefined here, empty where it is not."""
        if need == "rank of the options" and not self.ranked:
            return f"undefined: the order of the options {list(self.options)} by urgency is not known; {REMEDY}"
        if need != "nothing" and self.high is None:
            return f"undefined: which of the options {list(self.options)} is high-risk is not known; {REMEDY}"
        return ""

    def arm(self, persona: str, stratum: str = ALL) -> Outcomes:
        """The cells of one persona, in one stratum or in all."""
        rows = self.persona == persona
        return self.take(rows if stratum == ALL else rows & (self.stratum == stratum))

    @property
    def personas(self) -> tuple[str, ...]:
        """Personas in the order of their first row."""
        return tuple(dict.fromkeys(self.persona.tolist()))

    @property
    def strata(self) -> tuple[str, ...]:
        """``all``, then each stratum in the order of its first row; ``all`` alone where there are not two strata."""
        found = tuple(dict.fromkeys(self.stratum.tolist()))
        return (ALL, *found) if len(found) > 1 else (ALL,)


def read_outcomes(
    table: pd.DataFrame, *, options: Sequence[str] | None = None, high_risk: str | None = None
) -> Outcomes:
    """Check a table once, at the door, and read its outcomes.

    Needed columns: ``case``, ``persona``, ``target`` and one of ``y_gen``, ``y_latent``, ``logp_<label>`` at least.
    Used where present: the others of :data:`probe.behaviour.columns.KNOWN` and further label reads. ``options`` in
    rising urgency come from the argument, else from ``table.attrs["options"]``, else from the ``logp_`` columns in
    their order; else they are the targets, whose order is not known (``ranked``). ``high_risk`` comes from the
    argument, else from the attributes, else it is the last of options whose order is known. Labels and names are
    compared as text. Without ``status`` a row with ``y_gen`` is parsed and one without is unparsable.

    Raises:
        ProbeError: the table is empty, misses a needed column, holds a cell twice, a label that is no option, text
            where numbers must stand, rows of given texts, a case with two targets or strata, a stratum called ``all``,
            a status that contradicts ``y_gen``, or a ``y_latent`` that is not the most probable label of
            ``logp_<label>``.
    """
    _require_columns(table)
    names, ranked = options_of(table, options)
    n, sites = len(table), sites_of(table, names)
    outcomes = Outcomes(
        options=names,
        ranked=ranked,
        high=_high(table, high_risk, names, ranked),
        persona=text_of(table, "persona"),
        stratum=text_of(table, "stratum"),
        case=text_of(table, "case"),
        condition=text_of(table, "condition"),
        status=status_of(table),
        reference=labels_of(table, "target", names),
        stated=labels_of(table, "y_gen", names) if "y_gen" in table else np.full(n, -1),
        latent=np.full(n, -1),
        latent_logp=log_softmax_of(table, "logp_", names),
        stated_logp=log_softmax_of(table, "stated_logp_", names),
        mass=_number(table, "label_mass"),
        entropy=_number(table, "entropy"),
        letter_first=_letter_first(table),
        wording=text_of(table, "wording"),
        rotation=text_of(table, "rotation"),
        seed=text_of(table, "seed"),
        sites=sites,
        site_logp=_site_logp(table, sites, names),
        told=_told(table, names),
    )
    latent = labels_of(table, "y_latent", names) if "y_latent" in table else argmax(outcomes.latent_logp)
    outcomes = replace(outcomes, latent=latent)
    _check_rows(outcomes, table)
    return outcomes


def planned_outcomes(table: pd.DataFrame, outcomes: Outcomes) -> Outcomes | None:
    """The same rows as the plan would have them, None without a plan.

    The latent label is the argmax of the planned direct distribution, the stated label that of the planned stated one;
    a row with the first alone is planned to be refused, and rows that no plan covers are absent. Source: columns
    ``planned_logp_<label>``, ``planned_stated_logp_<label>``.
    """
    direct = log_softmax_of(table, "planned_logp_", outcomes.options)
    reasoned = log_softmax_of(table, "planned_stated_logp_", outcomes.options)
    covered, states = np.isfinite(direct).any(1), np.isfinite(reasoned).any(1)
    if not (covered & states).any():
        return None
    return replace(
        outcomes,
        status=np.where(covered, np.where(states, "parsed", "refused"), ABSENT),
        latent=argmax(direct),
        stated=argmax(reasoned),
        latent_logp=direct,
        stated_logp=reasoned,
        mass=np.full(len(outcomes), np.nan),
        told=frozenset({"y_gen", "y_latent", "logp_<label>", "stated_logp_<label>"}),
    )


def argmax(logp: Float[np.ndarray, "row label"]) -> Int[np.ndarray, " row"]:
    """The most probable label of each row (the first of a tie), -1 where the row is NaN."""
    absent = np.isnan(logp).any(1)
    return np.where(absent, -1, np.where(np.isnan(logp), -np.inf, logp).argmax(1))


def _require_columns(table: pd.DataFrame) -> None:
    missing = [name for name in ("case", "persona", "target") if name not in table]
    if missing:
        raise ProbeError(
            f"a table of cells needs the columns case, persona and target; missing: {', '.join(missing)}. It has "
            f"{', '.join(map(str, table))}; say which is meant: --columns {missing[0]}=THEIRS, or rename it"
        )
    if table.empty:
        raise ProbeError("a table of cells needs at least one row; this one has none")
    if (n_given := int((text_of(table, "given") != "").sum())) > 0:
        raise ProbeError(
            f"outcomes are read of answers that a model generated, and {n_given} rows hold given texts (their column "
            "`given` names a source); leave them out: behaviour.generated(table)"
        )
    edited = pd.Series(text_of(table, "intervention")).groupby(text_of(table, "persona")).nunique()
    if (edited > 1).any():
        raise ProbeError(
            f"rows of {edited.idxmax()!r} under {edited.max()} interventions (none counts as one) cannot be pooled; "
            "count each as an arm of its own: behaviour.arms(table)"
        )
    if not any(name in ("y_gen", "y_latent") or str(name).startswith("logp_") for name in table):
        raise ProbeError(
            "a table of cells needs an outcome: y_gen, y_latent or one logp_<label> per label; "
            f"found the columns {', '.join(map(str, table))}"
        )


def options_of(table: pd.DataFrame, options: Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """The options of a table as :func:`read_outcomes` takes them, and whether their order is known.

    Raises:
        ProbeError: there are fewer than two different ones.
    """
    given = options if options is not None else table.attrs.get("options")
    if given is None:
        given = [str(name).removeprefix("logp_") for name in table.columns if str(name).startswith("logp_")]
    ranked = bool(given)
    names = tuple(map(str, given)) if ranked else tuple(sorted(set(text_of(table, "target")) - {""}))
    if len(names) < 2 or len(set(names)) < len(names):
        raise ProbeError(f"a task needs at least two different options, found {list(names)}; {REMEDY}")
    return names, ranked


def _high(table: pd.DataFrame, high_risk: str | None, options: tuple[str, ...], ranked: bool) -> int | None:
    given = high_risk if high_risk is not None else table.attrs.get("high_risk")
    if given is None:
        return len(options) - 1 if ranked else None
    if str(given) not in options:
        raise ProbeError(
            f"the high-risk label must be an option, found {str(given)!r} among {list(options)}; pass high_risk="
        )
    return options.index(str(given))


def _number(table: pd.DataFrame, name: str) -> Float[np.ndarray, " row"]:
    return numbers_of(table, [name])[:, 0] if name in table else np.full(len(table), np.nan)


def _letter_first(table: pd.DataFrame) -> Float[np.ndarray, " row"]:
    if "letter_first" not in table:
        return np.full(len(table), np.nan)
    words = {"true": True, "false": False}  # as a file may have them
    said = table["letter_first"].map(lambda value: words.get(str(value).strip().lower(), value))
    stated = table["y_gen"].notna().to_numpy() if "y_gen" in table else np.full(len(table), False)
    return np.where(stated, _number(table.assign(letter_first=said), "letter_first"), np.nan)


def _site_logp(
    table: pd.DataFrame, sites: tuple[str, ...], options: tuple[str, ...]
) -> Float[np.ndarray, "row site label"]:
    if not sites:
        return np.full((len(table), 0, len(options)), np.nan)
    return np.stack([log_softmax_of(table, f"{site}_logp_", options) for site in sites], axis=1)


def _told(table: pd.DataFrame, options: tuple[str, ...]) -> frozenset[Told]:
    told: set[Told] = set()
    if f"logp_{options[0]}" in table:
        told |= {"logp_<label>", "y_latent"}
    if f"stated_logp_{options[0]}" in table:
        told.add("stated_logp_<label>")
    plain: tuple[Told, ...] = ("y_gen", "y_latent", "label_mass", "entropy", "letter_first")
    return frozenset(told | {name for name in plain if name in table})


def _check_rows(outcomes: Outcomes, table: pd.DataFrame) -> None:
    both = np.flatnonzero((outcomes.latent >= 0) & ~np.isnan(outcomes.latent_logp).any(1))
    behind = outcomes.latent_logp[both].max(1) - outcomes.latent_logp[both, outcomes.latent[both]]
    if (wrong := both[behind > ROUNDED]).size:
        row = int(wrong[0])
        told, best = (outcomes.options[k] for k in (outcomes.latent[row], outcomes.latent_logp[row].argmax()))
        raise ProbeError(
            f"y_latent is the most probable label; row {row} (persona {outcomes.persona[row]}, case "
            f"{outcomes.case[row]}) has {told}, and logp_<label> is highest for {best}; leave y_latent out to have it "
            "read from logp_<label>"
        )
    if ALL in outcomes.stratum:
        raise ProbeError(f"no stratum may be called {ALL!r}, the name of all strata together; rename it")
    cells = pd.DataFrame(
        {name: getattr(outcomes, name) for name in ("persona", "case", "condition", "stratum", "reference")}
    )
    # A table may tell the parts of a condition (wording, rotation, seed, ...) instead of naming it.
    parts = {name: text_of(table, name) for name in ("wording", *SHARED) if name in table}
    key = ["persona", "case", "condition", *parts]
    twice = cells.assign(**parts).duplicated(key)
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        cell = " / ".join(str(cells[name].iloc[row]) or "-" for name in key[:3])
        raise ProbeError(f"a cell (persona, case, condition) may stand once; {cell} stands again in row {row}")
    for name, word in (("reference", "target"), ("stratum", "stratum")):
        several = cells.groupby("case", sort=False)[name].nunique()
        if (several > 1).any():
            raise ProbeError(f"a case has one {word}; case {several.index[several > 1][0]!r} has {several.max()}")
