"""Cases from a data set on the Hugging Face hub. Knows the library ``datasets``; knows no case.

``datasets`` is an optional package, imported only when a study names a data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from probe.study.case_tables import rows_of
from probe.study.checked import CLOSED, Line, Name
from probe.study.located import Located

REMEDY = 'pip install "persona-probe[hub]"'


@dataclass(frozen=True)
class HubSource:
    """A data set of the hub: ``hub`` is its id (or a local folder), ``config`` the name of its subset.

    ``revision`` is a branch, tag or commit; pin a commit where a study must give the same cases tomorrow.
    """

    __pydantic_config__ = CLOSED

    hub: Line
    split: Name
    config: Name | None = None
    revision: Name | None = None
    fields: Any = None


def read_hub(wanted: HubSource, source: Located) -> Iterator[Located]:
    """One mapping for each row of a split; a class label (an integer with names) becomes its name.

    Raises:
        StudyError: ``datasets`` is not installed, or the data set, its subset, split or revision cannot be had.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise source.refusal(f"cases from the hub need the package datasets. Install it: {REMEDY}", "hub") from None
    try:
        rows = load_dataset(wanted.hub, wanted.config, split=wanted.split, revision=wanted.revision)
    except (DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise source.refusal(
            f"the data set {wanted.hub!r} cannot be loaded ({reason}). Check its id, `config`, `split` and `revision`",
            "hub",
        ) from None
    named = {name: feature for name, feature in rows.features.items() if hasattr(feature, "int2str")}
    return rows_of((_with_names(row, named) for row in rows), f"{wanted.hub} ({wanted.split})")


def _with_names(row: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    return row | {name: feature.int2str(row[name]) for name, feature in named.items() if row[name] is not None}
