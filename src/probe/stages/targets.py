"""What a command was pointed at: a study, a store, or a table. Knows suffixes and folders."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from pandas.errors import ParserWarning

from probe.behaviour import rename_columns
from probe.stages.terminal import say
from probe.store import Store, open_store
from probe.values import NoStore, ProbeError
from probe.values.nearest import nearest

TABLES = (".csv", ".jsonl", ".parquet")
"""Suffixes of a table of predictions."""

STUDIES = (".yaml", ".yml")
"""Suffixes of a study file."""

TEXT = (
    *("case", "family", "persona", "role", "style", "stratum", "condition", "target", "status", "letter"),
    *("placement", "prefix", "row_id", "category"),
)
"""Columns of names and labels, beside every ``y_...``: a persona may be called None, a stratum NA, a label 1."""

RANKING = ("case", "persona", "rank", "judge", "preference", "confidence", "stratum")
"""Columns of a table of rankings."""

RANKING_TEXT = ("case", "persona", "judge", "preference", "stratum")

MISSING_NUMBERS = ("", "NaN", "nan", "NA", "N/A", "null", "None")


def open_target(target: str | Path, *, store: str | Path | None = None) -> tuple[str, Store]:
    """The name and the open store of a study file, or of a store's folder or URL.

    Raises:
        ProbeError: it is neither, or ``store`` is given for what is no study.
    """
    if store is not None and Path(target).suffix not in STUDIES:
        raise ProbeError(f"--store says where a study's captures lie, and {target} is no study file; leave it out")
    if isinstance(target, str) and "://" in target:
        opened = _open(target)
        return str(opened.study.get("name", target.rstrip("/").rpartition("/")[2])), opened
    target = Path(target)
    if target.is_dir():
        opened = _open(target)
        return str(opened.study.get("name", target.name)), opened
    if target.suffix in STUDIES:
        from probe.stages.places import store_path
        from probe.study import Study

        study = Study.load(target)
        where = store_path(study, store)
        try:
            return study.name, _open(where)
        except NoStore as error:
            raise ProbeError(
                f"the study {target} has no captures: there is no store at {where}; "
                f"make it with: probe capture {target}{'' if store is None else f' --store {store}'}"
            ) from error
    raise ProbeError(f"{target} is neither a study file (.yaml) nor the folder of a store")


def _open(path: str | Path) -> Store:
    """The store, after a line that says what it lacks."""
    store = open_store(path, warn=False)
    coverage = store.coverage()
    if coverage.committed < coverage.planned:
        say(f"the store {store.place.url} holds {coverage}; what follows is of these")
    return store


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table of predictions in the columns of ``Store.table()``; names and labels are read as text.

    ``columns`` are the names that the table has for ours: ``{"case": "question_id"}``.

    Raises:
        ProbeError: the file is missing, of another kind, or cannot be read; a column is not there; or it is a table of
            rankings.
    """
    table = rename_columns(_read(path, columns or {}, TEXT), columns or {})
    if "rank" in table and "target" not in table:
        raise ProbeError(f"{path} ranks answers (it has the column rank and no target); read it with `probe rankings`")
    return table


def read_rankings(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table of judges' rankings: ``case``, ``persona``, ``rank``; perhaps ``judge``, ``preference``, ``confidence``.

    Raises:
        ProbeError: the file is missing, of another kind, or cannot be read; a column is not there; or a rank or a
            confidence is no number.
    """
    columns = columns or {}
    table = _read(path, columns, RANKING_TEXT)
    for ours, theirs in columns.items():
        for name, known, what in ((ours, RANKING, "column of rankings"), (theirs, table.columns, "column")):
            if name not in known:
                raise ProbeError(f"--columns {ours}={theirs}: {name!r} is not there. {nearest(name, known, what)}")
    table = table.rename(columns={theirs: ours for ours, theirs in columns.items()})
    for name in ("rank", "confidence"):
        if name not in table:
            continue
        number = pd.to_numeric(table[name], errors="coerce")
        if len(bad := table[name][number.isna() & table[name].notna()]):
            raise ProbeError(f"{path}: {name} must hold numbers, found {bad.iloc[0]!r} in row {bad.index[0]}; mend it")
        table[name] = number
    return table


def _read(path: Path, columns: Mapping[str, str], text: tuple[str, ...]) -> pd.DataFrame:
    """The file's own columns; those that we call by a name in ``text``, or ``y_...``, hold text."""
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise ProbeError(f"a table is read from {', '.join(TABLES)}, found {path.name!r}")
    ours = {theirs: name for name, theirs in columns.items()}

    def holds_text(name: str) -> bool:
        name = ours.get(name, name)
        return name in text or name.startswith("y_")

    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        return _read_csv(path, holds_text) if suffix == ".csv" else _read_jsonl(path)
    except FileNotFoundError as error:
        raise ProbeError(f"there is no file {path}") from error
    except (ValueError, OSError, ParserWarning) as error:
        raise ProbeError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from error


def _read_csv(path: Path, holds_text: Callable[[str], bool]) -> pd.DataFrame:
    names = pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns
    text = [name for name in names if holds_text(name)]
    missing = {name: [""] if name in text else list(MISSING_NUMBERS) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)  # a line with more fields than the header
        return pd.read_csv(
            path,
            encoding="utf-8-sig",
            dtype=dict.fromkeys(text, str),
            keep_default_na=False,
            na_values=missing,
            index_col=False,
            low_memory=False,
        )


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ProbeError(f"{path}:{number}: a line must be one JSON object; {error}") from error
        if not isinstance(row, dict):
            raise ProbeError(f"{path}:{number}: a line must be one JSON object, found {line.strip()[:40]!r}")
        rows.append(row)
    # As objects first: a column of 1 and null must not become 1.0 and NaN.
    return pd.DataFrame(rows, dtype=object)
