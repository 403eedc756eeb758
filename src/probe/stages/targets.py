"""What a command was pointed at: a study, a store, or a table. Knows suffixes and folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pandas as pd
from pandas.errors import ParserWarning

from probe.store import Store, open_store
from probe.values import ProbeError

TABLES = (".csv", ".jsonl", ".parquet")
"""Suffixes of a table of predictions."""

TEXT = (
    *("case", "family", "persona", "role", "style", "stratum", "condition", "target", "status", "letter"),
    *("placement", "prefix", "row_id"),
)
"""Columns of names and labels, beside every ``y_...``: a persona may be called None, a stratum NA, a label 1."""

MISSING_NUMBERS = ("", "NaN", "nan", "NA", "N/A", "null", "None")


def open_target(target: Path, *, store: Path | None = None) -> tuple[str, Store]:
    """The name and the open store of a study file or of a store's folder.

    Raises:
        ProbeError: it is neither.
    """
    if target.is_dir():
        opened = open_store(target)
        return str(opened.manifest.get("study", {}).get("name", target.name)), opened
    if target.suffix in (".yaml", ".yml"):
        from probe.stages.places import store_path
        from probe.study import Study

        study = Study.load(target)
        return study.name, open_store(store_path(study, store))
    raise ProbeError(f"{target} is neither a study file (.yaml) nor the folder of a store")


def read_table(path: Path) -> pd.DataFrame:
    """A table of predictions in the columns of ``Store.table()``; names and labels are read as text.

    Raises:
        ProbeError: the file is missing, of another kind, or cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise ProbeError(f"a table is read from {', '.join(TABLES)}, found {path.name!r}")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        return _read_csv(path) if suffix == ".csv" else _read_jsonl(path)
    except FileNotFoundError as error:
        raise ProbeError(f"there is no file {path}") from error
    except (ValueError, OSError, ParserWarning) as error:
        raise ProbeError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from error


def _read_csv(path: Path) -> pd.DataFrame:
    names = pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns
    text = [name for name in names if name in TEXT or name.startswith("y_")]
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
