"""The columns of a table of cells, read and checked. Knows names and types of columns; knows no outcome or metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import log_softmax

from probe.values import ProbeError
from probe.values.cells import STATUSES
from probe.values.nearest import nearest

REMEDY = "pass options= in rising urgency and high_risk= (--options home,clinic,emergency --high-risk emergency)"

ABSENT = "absent"
"""Status of a row whose answer was not observed (the table has no ``y_gen``, or no plan covers the cell)."""

INTERVENED = "intervened"
"""Role of an arm that an intervention makes."""

KNOWN = (
    *("case", "family", "persona", "role", "style", "category", "stratum", "condition", "target"),
    *("y_latent", "y_gen", "status", "letter", "letter_first", "label_mass", "entropy", "n_prompt", "n_gen"),
    *("wording", "instruction", "rotation", "placement", "prefix", "seed", "intervention", "given"),
)
"""Columns with a meaning here, beside the log-probabilities: ``logp_<label>`` (at ``prompt_end``),
``stated_logp_<label>`` (at ``answer``) and ``<site>_logp_<label>`` (elsewhere)."""


def rename_columns(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The table with its columns under the names used here: ``names["case"]`` is what the table calls ``case``.

    Attributes of the table are kept.

    Raises:
        ProbeError: a name is unknown here or is not in the table (the nearest one is named), one column of the table
            is asked for twice, or the table already has another column of that name.
    """
    for ours, theirs in names.items():
        if ours not in KNOWN and "logp_" not in ours:
            raise ProbeError(f"{ours!r} is no column of a table of cells. {nearest(ours, KNOWN, 'column')}")
        if theirs not in table:
            found = tuple(map(str, table.columns))
            raise ProbeError(
                f"the table has no column {theirs!r} to read as {ours}. {nearest(theirs, found, 'column')}"
            )
        if ours in table and ours != theirs and ours not in names.values():
            raise ProbeError(f"the table has a column {ours!r} beside {theirs!r}, which was to be read as it; drop one")
    if len(set(names.values())) < len(names):
        raise ProbeError(f"a column can be read as one thing only, found {dict(names)}")
    return table.rename(columns={theirs: ours for ours, theirs in names.items()})


def generated(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose answer the model wrote itself: without those of given texts (column ``given``), whose answer says
    nothing of the model. Attributes of the table are kept."""
    if "given" not in table:
        return table
    own = text_of(table, "given") == ""
    return table if own.all() else table[own].reset_index(drop=True)


def arms(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every intervention's rows as arms of their own: ``persona`` is then ``none + <intervention>``.

    Whatever counts or compares personas so does it arm by arm; rows of two arms are pairs as those of two personas are.
    Such an arm has the role ``intervened`` and no style, so that no arm of a control wording counts as one; ``arm`` is
    the intervention's name. Attributes of the table are kept.
    """
    edited = text_of(table, "intervention")
    acted = edited != ""
    if not acted.any():
        return table
    told = table.copy()
    told["persona"] = np.where(acted, text_of(table, "persona") + " + " + edited, text_of(table, "persona"))
    told["intervention"], told["arm"] = "", edited
    for name, value in (("role", INTERVENED), ("style", "")):
        if name in table:
            told[name] = np.where(acted, value, text_of(table, name))
    return told


def sites_of(table: pd.DataFrame, options: tuple[str, ...]) -> tuple[str, ...]:
    """Answer sites beside ``prompt_end`` and ``answer`` that the table has label reads at, in column order."""
    ends = tuple(f"_logp_{option}" for option in options)
    found = [str(name).removesuffix(end) for name in table.columns for end in ends if str(name).endswith(end)]
    return tuple(dict.fromkeys(site for site in found if site != "stated" and not site.startswith("planned")))


def as_text(value: Any) -> str | None:
    """A name or label as text, None where it is missing; 1 and 1.0 are the same label, as files mix them up."""
    if isinstance(value, str):
        return value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def text_of(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column of names as text, empty where a value or the whole column is missing."""
    if name not in table:
        return np.full(len(table), "", dtype=object)
    return np.array([as_text(value) or "" for value in table[name]], dtype=object)


def labels_of(table: pd.DataFrame, name: str, options: tuple[str, ...]) -> Int[np.ndarray, " row"]:
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
                f"({_where(table, row)}). {nearest(label, options, 'option')}; mend the row, or {REMEDY}"
            )
        codes[row] = index[label]
    return codes


def numbers_of(table: pd.DataFrame, names: list[str]) -> Float[np.ndarray, "row column"]:
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


def status_of(table: pd.DataFrame) -> np.ndarray:
    """How each answer was read; a table without ``status`` has parsed and unparsable answers only.

    Raises:
        ProbeError: an unknown status, or one that contradicts ``y_gen``.
    """
    if "y_gen" not in table:
        return np.full(len(table), ABSENT, dtype=object)
    stated = np.array([as_text(value) is not None for value in table["y_gen"]])
    if "status" not in table:
        return np.where(stated, "parsed", "unparsable").astype(object)
    status = text_of(table, "status")
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


def log_softmax_of(table: pd.DataFrame, prefix: str, options: tuple[str, ...]) -> Float[np.ndarray, "row label"]:
    """Log-softmax over the labels of the columns with this prefix; all NaN without them or in a row that lacks one."""
    missing = [prefix + option for option in options if prefix + option not in table]
    if len(missing) == len(options):
        return np.full((len(table), len(options)), np.nan)
    if missing:
        raise ProbeError(f"columns {prefix}<label> are needed for every option or for none; missing: {missing}")
    logp = numbers_of(table, [prefix + option for option in options])
    usable = ~np.isnan(logp).any(1) & ~np.isposinf(logp).any(1) & np.isfinite(logp).any(1)
    if (bad := ~usable & ~np.isnan(logp).any(1)).any():
        row = int(np.flatnonzero(bad)[0])
        raise ProbeError(f"{prefix}<label> must be log-probabilities; row {row} ({_where(table, row)}) has {logp[row]}")
    known = logp[usable]
    if (known > 0).any() and (known >= 0).all() and (known.sum(1) <= 1 + 1e-4).all():
        raise ProbeError(
            f"{prefix}<label> must hold log-probabilities, found numbers from 0 to 1 whose sum is at most 1 in every "
            "row, which are probabilities; give their natural logarithms"
        )
    result = np.full(logp.shape, np.nan)
    if usable.any():
        result[usable] = log_softmax(logp[usable], axis=1)
    return result


def _where(table: pd.DataFrame, row: int) -> str:
    return f"persona {table['persona'].iloc[row]}, case {table['case'].iloc[row]}"
