"""Lazy selections of a store. Knows rows, sites and the order asked for; reads only what is asked; never writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probe.store.manifests import Layout
from probe.store.names import UnknownName, require_known
from probe.store.packing import in_order, resid_name
from probe.store.reading import read_records, texts_of
from probe.store.residuals import Residuals
from probe.store.shard_format import DTYPES, TensorSpec
from probe.store.shards import Shard
from probe.store.tables import Row, at_site, by_shard, cells_table
from probe.values import CellRecord, ProbeError, StoreError

if TYPE_CHECKING:
    import pandas as pd

Names = str | Sequence[str]
Missing = Literal["raise", "drop", "nan"]

ATTRIBUTES: Mapping[str, Callable[[Row], str]] = {
    "persona": lambda row: row.planned.cell.persona,
    "case": lambda row: row.planned.cell.case,
    "stratum": lambda row: str(row.case.get("stratum", "")),
    "family": lambda row: str(row.case.get("family", "")),
    "role": lambda row: str(row.persona.get("role", "")),
    "style": lambda row: str(row.persona.get("style", "")),
    "placement": lambda row: row.planned.cell.condition.placement,
}
"""What rows are selected by, and where it stands."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What every selection of one store shares: layout, shards, the names of its plan, and the table's attributes."""

    layout: Layout
    shards: tuple[Shard, ...]
    known: Mapping[str, Sequence[str]]
    attrs: Mapping[str, Any]

    def listed(self, key: str) -> list[str]:
        """Different names in one list of the shards' headers, in order."""
        return in_order(name for shard in self.shards for name in shard.listed(key))

    @cached_property
    def resid_spec(self) -> TensorSpec | None:
        """Any residual tensor, for its width and dtype; None where no shard holds one."""
        specs = (spec for shard in self.shards for name, spec in shard.header.tensors.items() if name[:6] == "resid.")
        return next(specs, None)


@dataclass(frozen=True, eq=False)
class View:
    """Some committed rows of a store, in a fixed order that every table and array of this view shares."""

    rows: tuple[Row, ...]
    frame: Frame

    def __len__(self) -> int:
        return len(self.rows)

    def select(
        self,
        *,
        persona: Names | None = None,
        case: Names | None = None,
        stratum: Names | None = None,
        family: Names | None = None,
        role: Names | None = None,
        style: Names | None = None,
        placement: Names | None = None,
        where: str | None = None,
    ) -> View:
        """Rows that match every argument. A list also orders: rows follow it, the first list foremost.

        ``where`` is a pandas expression over the columns of ``table()``, as in ``"margin > 2 and y_gen == target"``.

        Raises:
            UnknownName: a name that the plan does not hold.
            ProbeError: ``where`` is no condition over these columns.
        """
        asked = {"persona": persona, "case": case, "stratum": stratum, "family": family}
        asked |= {"role": role, "style": style, "placement": placement}
        rows: Sequence[Row] = self.rows
        for key, names in reversed(asked.items()):  # sorting is stable: the first list, sorted last, is foremost
            if names is not None:
                rows = self._matching(rows, key, [names] if isinstance(names, str) else names)
        view = self if rows is self.rows else View(tuple(rows), self.frame)
        return view if where is None else view._where(where)

    def table(self) -> pd.DataFrame:
        """One line per row, columns as in docs/FORMAT.md; ``attrs`` hold ``options``, ``high_risk`` and ``study``."""
        return self._table.copy()

    def label_logp(self, site: str = "prompt_end", missing: Literal["raise", "nan"] = "raise") -> np.ndarray:
        """Log-probability of each option at an answer site, nats from the full softmax, float32 ``[rows, n_labels]``.

        Raises:
            UnknownName: no shard holds the site.
            StoreError: rows have no such site and ``missing`` is ``raise``.
        """
        require_known("label site", site, self.frame.listed("label_sites"))
        logp = at_site(self.rows, "label_logp", site, len(self.frame.layout.options))
        if missing == "raise":
            self._require(~np.isnan(logp).any(axis=1), site, 'missing="nan"')
        return logp

    def resid(self, *, layer: int, position: str, missing: Missing = "raise") -> Residuals:
        """The residual stream at one point and position, lazy ``[rows, d_model]``; rows as in ``table()``.

        ``layer`` is the residual point: 0 the embedding, k the output of block k-1. Where rows have no such position,
        ``drop`` leaves them out (``.kept`` holds the places of the others in this view) and ``nan`` fills them.

        Raises:
            UnknownName: the layer or position was not captured.
            StoreError: rows have no such position and ``missing`` is ``raise``.
        """
        layout, spec = self.frame.layout, self.frame.resid_spec
        if layer not in layout.layers:
            points = ", ".join(map(str, layout.layers))
            raise UnknownName(f"layer {layer!r} was not captured; the store holds residual points {points}")
        require_known("position", position, in_order([*layout.positions, *self.frame.listed("positions")]))
        entries = np.full(len(self.rows), -1, np.int64)
        for shard, slots, places in by_shard(self.rows):
            entries[slots] = shard.entries(position)[places]
        if missing == "raise":
            self._require(entries >= 0, position, 'missing="drop" or "nan"')
        kept = np.flatnonzero(entries >= 0) if missing == "drop" else np.arange(len(self.rows))
        return Residuals(
            rows=tuple(self.rows[slot] for slot in kept),
            kept=kept,
            entries=entries[kept],
            tensor=resid_name(position, layer),
            d_model=spec.shape[1] if spec else layout.d_model or 0,
            dtype=spec.dtype if spec else DTYPES["F32"],
        )

    def iter_layers(self, *, position: str, missing: Missing = "raise") -> Iterator[tuple[int, Residuals]]:
        """Every captured residual point with its lazy residuals, rising, so that one layer is in memory at a time."""
        for layer in sorted(self.frame.layout.layers):
            yield layer, self.resid(layer=layer, position=position, missing=missing)

    def texts(self) -> pd.DataFrame:
        """Columns ``row_id persona case prompt gen_text``; ``prompt`` is None where the plan holds no text."""
        import pandas as pd

        columns: dict[str, Any] = {
            "row_id": [row.planned.cell.row_id for row in self.rows],
            "persona": [row.planned.cell.persona for row in self.rows],
            "case": [row.planned.cell.case for row in self.rows],
            "prompt": pd.Series([row.planned.text for row in self.rows], dtype=object),
            "gen_text": pd.Series(texts_of(self.rows), dtype=object),
        }
        return pd.DataFrame(columns)

    def records(self) -> Iterator[CellRecord]:
        """Every row in full, as it was committed, shard by shard; ``record.cell`` says which row it is."""
        return read_records(self.rows)

    @cached_property
    def _table(self) -> pd.DataFrame:
        table = cells_table(self.rows, self.frame.layout)
        table.attrs.update(self.frame.attrs)
        return table

    def _matching(self, rows: Sequence[Row], key: str, names: Sequence[str]) -> list[Row]:
        get, order = ATTRIBUTES[key], {name: rank for rank, name in reversed(list(enumerate(names)))}
        for name in names:
            require_known(key, name, self.frame.known[key])
        return sorted((row for row in rows if get(row) in order), key=lambda row: order[get(row)])

    def _where(self, expression: str) -> View:
        try:
            found: Any = self._table.eval(expression, engine="python", local_dict={}, global_dict={})
        except (NameError, SyntaxError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise ProbeError(f"where={expression!r} is no condition over the table's columns: {error}") from error
        if getattr(found, "dtype", None) != np.bool_ or np.shape(found) != (len(self.rows),):
            raise ProbeError(f"where={expression!r} must be true or false for each row, as in 'margin > 2'")
        return View(tuple(row for row, keep in zip(self.rows, found, strict=True) if keep), self.frame)

    def _require(self, present: np.ndarray, site: str, remedy: str) -> None:
        absent = np.flatnonzero(~present)
        if absent.size:
            first = self.rows[absent[0]].planned.cell
            raise StoreError(
                f"{absent.size} of {len(self.rows)} rows have no {site!r} (first: {first.persona}/{first.case}); "
                f"select others, or ask with {remedy}"
            )
