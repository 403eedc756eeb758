"""Outcomes of cells, read from a table. Knows column names and options; knows no store, model or statistic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import log_softmax

from probe.values import ALL, ProbeError
from probe.values.cells import STATUSES

Need: TypeAlias = Literal["nothing", "high-risk option", "rank of the options"]
"""What a measure needs to know of the options."""

REMEDY = "pass options= in rising urgency and high_risk= (--options home,clinic,emergency --high-risk emergency)"

ABSENT = "absent"
"""Status of a row whose answer was not observed (the table has no ``y_gen``, or no plan covers the cell)."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What happened in each cell, one entry per table row, labels as indices into ``options``.

    ``ranked``: the options are known to stand in rising urgency. ``high`` is the index of the high-risk one, None where
    it is not known; what needs either is undefined without it, never guessed.

    ``stated`` and ``latent`` are -1 where there is no such label. ``latent_logp`` is the log-softmax over the labels
    (nats) at the end of the prompt, ``stated_logp`` that at the answer site; rows are NaN where the site is absent.
    ``mass`` is the full-vocabulary probability on all labels at the end of the prompt, NaN where unknown.
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
    Used where present: ``stratum``, ``condition``, ``status``, ``stated_logp_<label>``, ``label_mass``. ``options`` in
    rising urgency come from the argument, else from ``table.attrs["options"]``, else from the ``logp_`` columns in
    their order; else they are the targets, whose order is not known (``ranked``). ``high_risk`` comes from the
    argument, else from the attributes, else it is the last of options whose order is known. Labels and names are
    compared as text. Without ``status`` a row with ``y_gen`` is parsed and one without is unparsable.

    Raises:
        ProbeError: the table is empty, misses a needed column, holds a cell twice, a label that is no option, text
            where numbers must stand, a case with two targets or strata, a stratum called ``all``, or a status that
            contradicts ``y_gen``.
    """
    _require_columns(table)
    names, ranked = _options(table, options)
    n = len(table)
    outcomes = Outcomes(
        options=names,
        ranked=ranked,
        high=_high(table, high_risk, names, ranked),
        persona=_text(table, "persona"),
        stratum=_text(table, "stratum"),
        case=_text(table, "case"),
        condition=_text(table, "condition"),
        status=_status(table),
        reference=_labels(table, "target", names),
        stated=_labels(table, "y_gen", names) if "y_gen" in table else np.full(n, -1),
        latent=np.full(n, -1),
        latent_logp=_log_softmax(table, "logp_", names),
        stated_logp=_log_softmax(table, "stated_logp_", names),
        mass=_numbers(table, ["label_mass"])[:, 0] if "label_mass" in table else np.full(n, np.nan),
    )
    latent = _labels(table, "y_latent", names) if "y_latent" in table else argmax(outcomes.latent_logp)
    outcomes = replace(outcomes, latent=latent)
    _check_rows(outcomes)
    return outcomes


def planned_outcomes(table: pd.DataFrame, outcomes: Outcomes) -> Outcomes | None:
    """The same rows as the plan would have them, None without a plan.

    The latent label is the argmax of the planned direct distribution, the stated label that of the planned reasoned
    one; rows that no plan covers are absent. Source: columns ``planned_logp_<label>``, ``planned_stated_logp_<label>``.
    """
    direct = _log_softmax(table, "planned_logp_", outcomes.options)
    reasoned = _log_softmax(table, "planned_stated_logp_", outcomes.options)
    covered = np.isfinite(direct).any(1) & np.isfinite(reasoned).any(1)
    if not covered.any():
        return None
    return replace(
        outcomes,
        status=np.where(covered, "parsed", ABSENT),
        latent=argmax(direct),
        stated=argmax(reasoned),
        latent_logp=direct,
        stated_logp=reasoned,
        mass=np.full(len(outcomes), np.nan),
    )


def argmax(logp: Float[np.ndarray, "row label"]) -> Int[np.ndarray, " row"]:
    """The most probable label of each row (the first of a tie), -1 where the row is NaN."""
    absent = np.isnan(logp).any(1)
    return np.where(absent, -1, np.where(np.isnan(logp), -np.inf, logp).argmax(1))


def _require_columns(table: pd.DataFrame) -> None:
    missing = [name for name in ("case", "persona", "target") if name not in table]
    if missing:
        raise ProbeError(f"a table of cells needs the columns case, persona and target; missing: {', '.join(missing)}")
    if table.empty:
        raise ProbeError("a table of cells needs at least one row; this one has none")
    if not any(name in ("y_gen", "y_latent") or str(name).startswith("logp_") for name in table):
        raise ProbeError(
            "a table of cells needs an outcome: y_gen, y_latent or one logp_<label> per label; "
            f"found the columns {', '.join(map(str, table))}"
        )


def _options(table: pd.DataFrame, options: Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """The options, and whether their order is known."""
    given = options if options is not None else table.attrs.get("options")
    if given is None:
        given = [str(name).removeprefix("logp_") for name in table.columns if str(name).startswith("logp_")]
    ranked = bool(given)
    names = tuple(map(str, given)) if ranked else tuple(sorted(set(_text(table, "target")) - {""}))
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


def as_text(value: Any) -> str | None:
    """A name or label as text, None where it is missing; 1 and 1.0 are the same label, as files mix them up."""
    if isinstance(value, str):
        return value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _text(table: pd.DataFrame, name: str) -> np.ndarray:
    if name not in table:
        return np.full(len(table), "", dtype=object)
    return np.array([as_text(value) or "" for value in table[name]], dtype=object)


def _labels(table: pd.DataFrame, name: str, options: tuple[str, ...]) -> Int[np.ndarray, " row"]:
    """Option indices of a label column, -1 for a missing one (which ``target`` may not have)."""
    index = {option: i for i, option in enumerate(options)}
    codes = np.full(len(table), -1)
    for row, value in enumerate(table[name]):
        label = as_text(value)
        if label is None:
            if name == "target":
                raise ProbeError(f"every row needs a target; row {row} ({_where(table, row)}) has none")
            continue
        if label not in index:
            raise ProbeError(
                f"{name} must be one of the options {list(options)}, found {label!r} in row {row} "
                f"({_where(table, row)}). {_nearest(label, options)}; mend the row, or {REMEDY}"
            )
        codes[row] = index[label]
    return codes


def _numbers(table: pd.DataFrame, names: list[str]) -> Float[np.ndarray, "row column"]:
    """These columns as float64, NaN where a value is missing."""
    columns = []
    for name in names:
        column = table[name].astype(object)
        number = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
        if (bad := np.isnan(number) & column.notna().to_numpy()).any():
            row = int(np.flatnonzero(bad)[0])
            raise ProbeError(
                f"{name} must hold numbers, found {column.iloc[row]!r} in row {row} ({_where(table, row)}); mend it, "
                "or leave it empty where there is none"
            )
        columns.append(number)
    return np.stack(columns, axis=1)


def _status(table: pd.DataFrame) -> np.ndarray:
    if "y_gen" not in table:
        return np.full(len(table), ABSENT, dtype=object)
    stated = np.array([as_text(value) is not None for value in table["y_gen"]])
    if "status" not in table:
        return np.where(stated, "parsed", "unparsable").astype(object)
    status = _text(table, "status")
    for row, value in enumerate(status):
        if value not in STATUSES:
            raise ProbeError(
                f"status must be one of {', '.join(STATUSES)}; found {value!r} in row {row} ({_where(table, row)})"
            )
        if (value == "parsed") != stated[row]:
            what = "has" if stated[row] else "has no"
            raise ProbeError(
                f"y_gen is given exactly where status is parsed; row {row} ({_where(table, row)}) is {value} "
                f"but {what} y_gen"
            )
    return status


def _log_softmax(table: pd.DataFrame, prefix: str, options: tuple[str, ...]) -> Float[np.ndarray, "row label"]:
    """Log-softmax over the labels of the columns with this prefix; all NaN without them or in a row that lacks one."""
    missing = [prefix + option for option in options if prefix + option not in table]
    if len(missing) == len(options):
        return np.full((len(table), len(options)), np.nan)
    if missing:
        raise ProbeError(f"columns {prefix}<label> are needed for every option or for none; missing: {missing}")
    logp = _numbers(table, [prefix + option for option in options])
    usable = ~np.isnan(logp).any(1) & ~np.isposinf(logp).any(1) & np.isfinite(logp).any(1)
    if (bad := ~usable & ~np.isnan(logp).any(1)).any():
        row = int(np.flatnonzero(bad)[0])
        raise ProbeError(f"{prefix}<label> must be log-probabilities; row {row} ({_where(table, row)}) has {logp[row]}")
    result = np.full(logp.shape, np.nan)
    if usable.any():
        result[usable] = log_softmax(logp[usable], axis=1)
    return result


def _check_rows(outcomes: Outcomes) -> None:
    if ALL in outcomes.stratum:
        raise ProbeError(f"no stratum may be called {ALL!r}, the name of all strata together; rename it")
    cells = pd.DataFrame(
        {name: getattr(outcomes, name) for name in ("persona", "case", "condition", "stratum", "reference")}
    )
    twice = cells.duplicated(["persona", "case", "condition"])
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        cell = " / ".join(str(cells[name].iloc[row]) or "-" for name in ("persona", "case", "condition"))
        raise ProbeError(f"a cell (persona, case, condition) may stand once; {cell} stands again in row {row}")
    for name, word in (("reference", "target"), ("stratum", "stratum")):
        several = cells.groupby("case", sort=False)[name].nunique()
        if (several > 1).any():
            raise ProbeError(f"a case has one {word}; case {several.index[several > 1][0]!r} has {several.max()}")


def _where(table: pd.DataFrame, row: int) -> str:
    return f"persona {table['persona'].iloc[row]}, case {table['case'].iloc[row]}"


def _nearest(label: str, options: tuple[str, ...]) -> str:
    from probe.study.located import nearest  # late: only a refusal needs it, and a study brings its file readers

    return nearest(label, options, "option")
