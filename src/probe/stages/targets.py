"""What a command was pointed at: a study, a store, or a table. Knows suffixes and folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from probe.store import Store, open_store
from probe.values import ProbeError

READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: pd.read_csv(path),
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".parquet": lambda path: pd.read_parquet(path),
}


def open_target(target: Path, *, store: Path | None = None) -> tuple[str, Store]:
    """The name and the open store of a study file or of a store's folder.

    Raises:
        ProbeError: it is neither.
    """
    if target.is_dir():
        opened = open_store(target)
        return str(opened.manifest.get("study", {}).get("name", target.name)), opened
    if target.suffix in (".yaml", ".yml"):
        from probe.stages.capture import store_path
        from probe.study import Study

        study = Study.load(target)
        return study.name, open_store(store_path(study, store))
    raise ProbeError(f"{target} is neither a study file (.yaml) nor the folder of a store")


def read_table(path: Path) -> pd.DataFrame:
    """A table of predictions in the columns of ``Store.table()``.

    Raises:
        ProbeError: the file is missing, of another kind, or cannot be read.
    """
    if path.suffix not in READERS:
        raise ProbeError(f"a table is read from {', '.join(READERS)}, found {path.name!r}")
    try:
        return READERS[path.suffix](path)
    except FileNotFoundError as error:
        raise ProbeError(f"there is no file {path}") from error
    except (ValueError, OSError) as error:
        raise ProbeError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from error
