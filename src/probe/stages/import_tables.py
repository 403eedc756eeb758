"""A table that another tool made, as the rows of a store. Knows DESIGN's columns; knows nothing of activations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from probe.values import Cell, Condition, LabelRead, ProbeError, sha256_of
from probe.values.cells import STATUSES

PARTS = tuple(part.name for part in fields(Condition))
NUMBERS = tuple(part.name for part in fields(Condition) if isinstance(part.default, int))
SITES = (("prompt_end", "logp_", "label_mass", "entropy"), ("answer", "stated_logp_", "stated_label_mass", ""))
"""Answer site, prefix of its log-probabilities, and where its label mass and entropy stand."""

_OF_CASE = ("family", "stratum", "target")
_OF_PERSONA = ("role", "style")
_OF_ROW = ("y_latent", "y_gen", "status", "letter", "letter_first", "n_prompt", "n_gen", "prompt", "gen_text")
_DERIVED = ("margin", "row_id")
_TOLERANCE = 1e-3
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}


@dataclass(frozen=True, eq=False)
class ImportedRow:
    """What the table says of one cell. ``told`` are columns that a captured row derives from what is not here."""

    cell: Cell
    labels: Mapping[str, LabelRead]
    status: str
    label: str | None
    letter: str | None
    letter_first: bool
    prompt: str | None
    gen_text: str
    told: Mapping[str, Any]

    @property
    def prompt_sha(self) -> str:
        """Hash of the prompt's text; where there is none, of the cell: an import cannot notice an edited text."""
        return sha256_of(self.prompt if self.prompt is not None else ["imported", self.cell.row_id])


@dataclass(frozen=True, eq=False)
class ImportedTable:
    """Rows in the order of the table, with the personas and cases that they cross, as a plan lists them.

    ``conditions`` says which number of ``instruction`` stands for which value of a column ``condition`` that names no
    parts. ``left_out`` are columns that a store has no place for.
    """

    rows: tuple[ImportedRow, ...]
    personas: tuple[dict[str, Any], ...]
    cases: tuple[dict[str, Any], ...]
    options: tuple[str, ...]
    conditions: Mapping[str, int]
    left_out: tuple[str, ...]


def read_rows(table: pd.DataFrame, options: Sequence[str] | None = None) -> ImportedTable:
    """Check a table and make its lines the rows of a store. It needs ``case`` and ``persona``, one line per cell.

    ``options`` are the labels in rising urgency; by default those of the ``logp_<label>`` columns, in their order.

    Raises:
        ProbeError: a column is missing, a cell stands there twice, or a value breaks a rule; the line is named.
    """
    for name in ("case", "persona"):
        if name not in table:
            raise ProbeError(f"an import needs the columns case and persona, one line per cell; {name!r} is missing")
        if (missing := table[name].isna()).any():
            raise ProbeError(f"every line names its {name}; {_line(missing)} has none")
    known = tuple(options) if options else _logp_labels(table)
    if not known:
        raise ProbeError(
            "the options in rising urgency are not known: the table has no logp_<label> columns; name them with "
            "--options home,clinic,emergency"
        )
    cells, conditions = _cells(table)
    personas = _entries(table, "persona", _OF_PERSONA)
    cases = _entries(table, "case", _OF_CASE)
    for case in cases:
        case["family"] = case["family"] or case["id"]
        case["target"] = case["target"] or None
        _require_option(case["target"], known, f"the target of case {case['id']!r}")
    columns = {str(name): table[name].tolist() for name in table}
    rows = tuple(_row(cell, {n: v[i] for n, v in columns.items()}, known, i) for i, cell in enumerate(cells))
    return ImportedTable(rows, personas, cases, known, conditions, _left_out(table, known))


def _logp_labels(table: pd.DataFrame) -> tuple[str, ...]:
    return tuple(name.removeprefix("logp_") for name in map(str, table) if name.startswith("logp_"))


def _left_out(table: pd.DataFrame, options: Sequence[str]) -> tuple[str, ...]:
    kept = {"case", "persona", "condition", *PARTS, *_OF_CASE, *_OF_PERSONA, *_OF_ROW, *_DERIVED}
    for _, prefix, mass, entropy in SITES:
        kept |= {mass, entropy, *(f"{prefix}{option}" for option in options)}
    return tuple(name for name in map(str, table) if name not in kept)


def _cells(table: pd.DataFrame) -> tuple[list[Cell], dict[str, int]]:
    """The cell of each line, and the number given to each condition that only has a name."""
    parts = [part for part in PARTS if part in table]
    lines = table[parts].to_dict("records") if parts else [{}] * len(table)
    conditions, names = _named(table, parts, [_condition(line, at) for at, line in enumerate(lines)])
    keys = zip(table["persona"], table["case"], conditions, strict=True)
    cells = [Cell(str(persona), str(case), condition) for persona, case, condition in keys]
    first: dict[Cell, int] = {}
    for at, cell in enumerate(cells):
        if first.setdefault(cell, at) != at:
            raise ProbeError(
                f"each line is another cell; lines {first[cell] + 1} and {at + 1} are both {cell.persona}/{cell.case} "
                f"under {cell.condition.name!r}: tell them apart by a column `condition`"
            )
    return cells, names


def _named(table: pd.DataFrame, parts: Sequence[str], told: list[Condition]) -> tuple[list[Condition], dict[str, int]]:
    """The conditions that the columns of ``parts`` tell, with what the column ``condition`` says beside them.

    Raises:
        ProbeError: the two contradict each other.
    """
    names = ["" if _absent(name) else str(name) for name in table.get("condition", ())]
    if not any(names):
        return told, {}
    parsed = {name: _parsed(name) for name in dict.fromkeys(names)}
    if None in parsed.values():  # names of another tool
        if "instruction" in parts:
            unknown = next(name for name, condition in parsed.items() if condition is None)
            raise ProbeError(
                f"a condition that has only a name ({unknown!r}) is numbered as an instruction, and the table has a "
                "column `instruction` too; leave one of the two out"
            )
        numbers = {name: number for number, name in enumerate(parsed)}
        return [replace(one, instruction=numbers[name]) for one, name in zip(told, names, strict=True)], numbers
    found = [condition for name in names if (condition := parsed[name]) is not None]
    for at, (one, other) in enumerate(zip(told, found, strict=True)):
        if parts and one != other:
            raise ProbeError(
                f"a condition is told once; line {at + 1} of the table says {other.name!r} in the column `condition` "
                f"and {one.name!r} in its parts ({', '.join(parts)}): leave one of the two out"
            )
    return found, {}


def _condition(line: Mapping[Any, Any], at: int) -> Condition:
    given = {str(name): value for name, value in line.items() if not _absent(value)}
    try:
        values: dict[str, Any] = {name: int(v) if name in NUMBERS else str(v) for name, v in given.items()}
        return Condition(**values)
    except (TypeError, ValueError) as error:
        raise ProbeError(f"{', '.join(NUMBERS)} are whole numbers; line {at + 1} of the table: {error}") from error


def _parsed(name: str) -> Condition | None:
    """A condition from the short name that a store's table shows; None where it is another tool's name."""
    placement, *parts = re.split(r"/(?=\w+=)", name)
    pairs = dict(part.split("=", 1) for part in parts)
    if placement not in ("system", "user") or not pairs.keys() <= set(PARTS):
        return None
    try:
        values: dict[str, Any] = {key: int(v) if key in NUMBERS else v for key, v in pairs.items()}
        return Condition(placement=placement, **values)
    except (TypeError, ValueError):
        return None


def _entries(table: pd.DataFrame, key: str, columns: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """One mapping per persona or case, in order of appearance, as a plan lists them."""
    found: dict[str, dict[str, Any]] = {}
    lines = zip(*(table[name] if name in table else [None] * len(table) for name in (key, *columns)), strict=True)
    for at, (name, *values) in enumerate(lines):
        entry = dict(zip(columns, ("" if _absent(value) else str(value) for value in values), strict=True))
        if found.setdefault(str(name), entry) != entry:
            other = next(column for column in columns if found[str(name)][column] != entry[column])
            raise ProbeError(
                f"a {key} has one {other}; {key} {str(name)!r} has {found[str(name)][other]!r} and, in line {at + 1}, "
                f"{entry[other]!r}"
            )
    return tuple({"id": name, **entry, "sha256": sha256_of({"id": name, **entry})} for name, entry in found.items())


def _row(cell: Cell, line: Mapping[str, Any], options: tuple[str, ...], at: int) -> ImportedRow:
    where = f"line {at + 1} ({cell.persona}/{cell.case})"
    labels = {}
    for site, prefix, mass, entropy in SITES:
        if (read := _read(line, options, prefix, (mass, entropy), where)) is not None:
            labels[site] = read
    y_gen, status = _text(line, "y_gen"), _text(line, "status")
    _require_option(y_gen, options, f"y_gen of {where}")
    if status is None:
        status = "truncated" if "y_gen" not in line else "unparsable" if y_gen is None else "parsed"
    if status not in STATUSES:
        raise ProbeError(f"status is one of {', '.join(STATUSES)}; {where} has {status!r}")
    if (status == "parsed") != (y_gen is not None):
        raise ProbeError(f"an answer states a label where its status is `parsed`; {where} has {y_gen!r} and {status!r}")
    first = "" if _absent(line.get("letter_first")) else str(line["letter_first"]).lower()
    if first not in _FLAGS:
        raise ProbeError(f"letter_first is true or false; {where} has {line['letter_first']!r}")
    return ImportedRow(
        cell=cell,
        labels=labels,
        status=status,
        label=y_gen,
        letter=_text(line, "letter"),
        letter_first=_FLAGS[first],
        prompt=_text(line, "prompt"),
        gen_text=_text(line, "gen_text") or "",
        told=_told(line, options, labels, where),
    )


def _told(
    line: Mapping[str, Any], options: tuple[str, ...], labels: Mapping[str, LabelRead], where: str
) -> dict[str, Any]:
    """Columns of the table that the store would otherwise derive: lengths, and a latent label without its logits."""
    lengths = {name: _number(line, name, where) for name in ("n_prompt", "n_gen")}
    told: dict[str, Any] = {name: -1 if np.isnan(n) else int(n) for name, n in lengths.items()}
    latent = _text(line, "y_latent")
    _require_option(latent, options, f"y_latent of {where}")
    read = labels.get("prompt_end")
    if latent is not None and read is None:
        told["y_latent"] = latent
    elif latent is not None and read is not None and read.logp[options.index(latent)] < read.logp.max():
        raise ProbeError(
            f"y_latent is the option of highest logp_; {where} has {latent!r}, and logp_ says "
            f"{options[int(np.argmax(read.logp))]!r}"
        )
    return told


def _read(
    line: Mapping[str, Any], options: tuple[str, ...], prefix: str, beside: tuple[str, str], where: str
) -> LabelRead | None:
    """The label read of one site; None where the line has none. An entropy that the table lacks is not known: NaN."""
    values = [line.get(f"{prefix}{option}") for option in options]
    if all(map(_absent, values)):
        return None
    try:
        logp = np.array([np.nan if _absent(value) else value for value in values], np.float64)
    except (TypeError, ValueError) as error:
        raise ProbeError(f"{prefix}<label> are numbers; {where}: {error}") from error
    total = float(np.exp(logp).sum())
    if not np.isfinite(logp).all() or total > 1 + _TOLERANCE:
        raise ProbeError(
            f"{prefix}<label> are log-probabilities in nats, one finite number per option ({', '.join(options)}), or "
            f"all empty; {where} has {', '.join(f'{value:.4g}' for value in logp)}"
        )
    mass, entropy = (_number(line, name, where) for name in beside)
    if mass > 1 + _TOLERANCE or mass < total - _TOLERANCE:
        raise ProbeError(
            f"{beside[0]} is the probability on all options together, and {prefix}<label> come from the same softmax, "
            f"over the whole vocabulary; {where} has {mass:.4g}, and its options sum to {total:.4g}"
        )
    return LabelRead(
        logp=logp.astype(np.float32),
        mass=min(total if np.isnan(mass) else mass, 1.0),  # what the options have, by definition
        entropy=entropy,
    )


def _number(line: Mapping[str, Any], name: str, where: str) -> float:
    """A number that is not negative; NaN where there is none. -1 says of a length that it is not known.

    Raises:
        ProbeError: it is something else.
    """
    value = line.get(name)
    if _absent(value) or value == "":
        return np.nan
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever it is, it is tried
    except (TypeError, ValueError):
        number = np.nan
    is_length = name in ("n_prompt", "n_gen")
    if is_length and number == -1:
        return np.nan
    if not np.isfinite(number) or number < -_TOLERANCE or (is_length and number != int(number)):
        raise ProbeError(f"{name} is a {'whole ' if is_length else ''}number from 0; {where} has {value!r}")
    return max(number, 0.0)


def _require_option(label: str | None, options: Sequence[str], what: str) -> None:
    if label is not None and label not in options:
        raise ProbeError(f"{what} is one of the options {', '.join(options)}; found {label!r}")


def _text(line: Mapping[str, Any], name: str) -> str | None:
    value = line.get(name)
    return None if _absent(value) or value == "" else str(value)


def _absent(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))


def _line(marked: pd.Series) -> str:
    return f"line {int(np.argmax(marked.to_numpy())) + 1} of the table"
