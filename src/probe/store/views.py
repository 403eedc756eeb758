"""Lazy selections of a store. Knows rows, sites and the order asked for; reads only what is asked; never writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from probe.store.activations import ActivationCache
from probe.store.frames import Frame
from probe.store.locations import Locations, Row
from probe.store.names import require_known
from probe.store.reading import read_records, runs_of, texts_of
from probe.store.residuals import Residuals, read_entries
from probe.store.tables import LabelVariants, at_site, cells_table, variants_at
from probe.values import CellRecord, ProbeError, StoreError

if TYPE_CHECKING:
    import pandas as pd

Names = str | Sequence[str]
Numbers = int | Sequence[int]
Missing = Literal["raise", "drop", "nan"]


class Selectable(ABC):
    """What rows can be selected from: a store, and every selection of it."""

    @abstractmethod
    def _view(self) -> View:
        """The rows that a selection begins with."""

    def select(
        self,
        *,
        persona: Names | None = None,
        case: Names | None = None,
        stratum: Names | None = None,
        family: Names | None = None,
        role: Names | None = None,
        style: Names | None = None,
        condition: Names | None = None,
        placement: Names | None = None,
        wording: Numbers | None = None,
        instruction: Numbers | None = None,
        rotation: Numbers | None = None,
        seed: Numbers | None = None,
        given: Names | None = None,
        intervention: Names | None = None,
        where: str | None = None,
    ) -> View:
        """Rows that match every argument, lazily; without arguments all of them.

        A list also orders: rows follow it, the first list foremost. ``condition`` is the short name that the table
        shows. ``given`` is the source of given texts, ``""`` that of answers which were generated; ``intervention`` the
        name of one, ``""`` that of unedited runs. ``where`` is a pandas expression over the columns of
        ``table()``, as in ``"margin > 2 and y_gen == target"``.

        Raises:
            UnknownName: a name that the plan does not hold.
            ProbeError: ``where`` is no condition over these columns.
        """
        asked: dict[str, Names | Numbers | None] = {"persona": persona, "case": case, "stratum": stratum}
        asked |= {"family": family, "role": role, "style": style, "condition": condition, "placement": placement}
        asked |= {"wording": wording, "instruction": instruction, "rotation": rotation, "seed": seed}
        asked |= {"given": given, "intervention": intervention}
        view = self._view()
        for key, names in reversed(asked.items()):  # sorting is stable: the first list, sorted last, is foremost
            if names is not None:
                view = view._matching(key, [names] if isinstance(names, str | int | np.integer) else names)
        return view if where is None else view._where(where)

    def table(self) -> pd.DataFrame:
        """One line per row, columns as in docs/FORMAT.md; ``attrs`` hold ``options``, ``high_risk`` and ``study``."""
        return self._view()._cells.copy()

    def export(
        self, to: str, out: str | Path, *, layers: Sequence[int] | None = None, positions: Sequence[str] | None = None
    ) -> Path:
        """Write these rows as ``numpy``, ``zarr``, ``xarray``, ``parquet``, ``datasets`` or ``csv``.

        Raises:
            ProbeError: there is no such format, its package is not installed, or ``out`` exists.
            UnknownName: a layer or position was not captured.
        """
        from probe.store.formats import export

        return export(self._view(), to, out, layers=layers, positions=positions)


@dataclass(frozen=True, eq=False)
class View(Selectable):
    """Some committed rows of a store, in a fixed order that every table and array of this view shares."""

    rows: tuple[Row, ...]
    frame: Frame

    def __len__(self) -> int:
        return len(self.rows)

    def _view(self) -> View:
        return self

    def label_logp(self, site: str = "prompt_end", missing: Literal["raise", "nan"] = "raise") -> np.ndarray:
        """Log-probability of each option at an answer site, nats from the full softmax, float32 ``[rows, n_labels]``.

        Raises:
            UnknownName: no shard holds the site.
            StoreError: rows have no such site and ``missing`` is ``raise``.
        """
        self.frame.sites.require_label_site(site)
        logp = at_site(self.locations, {"label_logp": len(self.frame.layout.options)}, site)["label_logp"]
        if missing == "raise":
            self._require(~np.isnan(logp).any(axis=1), site, 'missing="nan"')
        return logp

    def label_variants(self, site: str = "prompt_end") -> LabelVariants:
        """The token variants that were summed for each label at an answer site; rows as in ``table()``.

        Raises:
            UnknownName: no shard holds the site.
        """
        self.frame.sites.require_label_site(site)
        return variants_at(self.locations, site, len(self.frame.layout.options))

    def given_logp(self) -> list[np.ndarray]:
        """For each row the log-probability of every token of its given text, given prompt and earlier tokens.

        Nats from the full softmax, float32 ``[n_gen]``; empty where the answer was generated.
        """
        return runs_of(self.locations, "given_logp")

    def gen_tokens(self) -> list[np.ndarray]:
        """The token ids of each row's answer, int32, without an end token."""
        return runs_of(self.locations, "gen_tokens")

    def resid(self, *, layer: int, position: str, stream: str = "resid", missing: Missing = "raise") -> Residuals:
        """Activations at one layer and position, lazy ``[rows, width]``; rows as in ``table()``.

        ``layer`` of the stream ``resid`` is the residual point: 0 the embedding, k the output of block k-1; of every
        other stream (:data:`probe.values.STREAMS`) it is the block. Where rows have no such position, ``drop`` leaves
        them out (``.kept`` holds the places of the others in this view) and ``nan`` fills them.

        Raises:
            UnknownName: the layer, position or stream was not captured.
            StoreError: rows have no such position and ``missing`` is ``raise``.
        """
        site = self.frame.sites.site(stream, position, [layer])
        entries = self._entries(position, missing)
        kept = np.flatnonzero(entries.places >= 0) if missing == "drop" else np.arange(len(self.rows))
        return Residuals(
            rows=self.rows if missing != "drop" else tuple(self.rows[slot] for slot in kept),
            kept=kept,
            entries=entries if missing != "drop" else entries.take(kept),
            tensor=site.tensors[0],
            d_model=site.d_model,
            dtype=site.dtype,
        )

    def stack(
        self,
        layers: Sequence[int] | None = None,
        *,
        position: str,
        stream: str = "resid",
        dtype: DTypeLike = "float32",
        missing: Literal["raise", "nan"] = "raise",
    ) -> np.ndarray:
        """Activations at several layers (all that were captured, rising) and one position, ``[rows, layers, d_model]``.

        Few rows at many layers are read fast: each shard is opened once. Of all rows this is the whole capture at one
        position in memory; ``iter_layers`` holds one layer at a time.

        Raises:
            UnknownName: a layer, the position or the stream was not captured.
            StoreError: rows have no such position and ``missing`` is ``raise``.
        """
        asked = self.frame.sites.layers(stream) if layers is None else layers
        site = self.frame.sites.site(stream, position, asked)
        return read_entries(self._entries(position, missing), site.tensors, site.d_model, dtype)

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that were captured: ``resid`` first, the others indexed by block."""
        return self.frame.sites.streams

    def iter_layers(
        self, *, position: str, stream: str = "resid", missing: Missing = "raise"
    ) -> Iterator[tuple[int, Residuals]]:
        """Every captured layer with its lazy activations, rising, so that one layer is in memory at a time."""
        for layer in self.frame.sites.layers(stream):
            yield layer, self.resid(layer=layer, position=position, stream=stream, missing=missing)

    def batches(
        self, *, layer: int, position: str, rows: int = 256, seed: int | None = 0, missing: Missing = "raise"
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Shuffled batches ``(places, activations)``: every row once, float32 ``[<= rows, d_model]``.

        ``places`` are those of the batch's rows in this view: ``view.table().iloc[places]``. The same ``seed`` gives
        the same batches; None keeps the order of the view.

        Raises:
            ProbeError: ``rows`` is not positive; otherwise as ``resid``.
        """
        if rows < 1:
            raise ProbeError(f"a batch has at least one row; found rows={rows}")
        resid = self.resid(layer=layer, position=position, missing=missing)
        n = len(resid)
        order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
        for start in range(0, n, rows):
            batch = resid.take(order[start : start + rows])
            yield batch.kept, batch.numpy()

    def activation_cache(self, *, position: str, missing: Missing = "raise") -> ActivationCache:
        """The activations at one position under TransformerLens' names, each read when it is asked for.

        ``cache["blocks.3.hook_resid_post"]`` and ``cache["resid_post", 3]`` are residual point 4, ``[rows, d_model]``.
        """
        sites = self.frame.sites
        places = [(stream, layer) for stream in sites.streams for layer in sites.layers(stream)]
        return ActivationCache(
            places, lambda stream, layer: self.resid(layer=layer, position=position, stream=stream, missing=missing)
        )

    def texts(self) -> pd.DataFrame:
        """Columns ``row_id persona case prompt gen_text``; ``prompt`` is None where the plan holds no text."""
        import pandas as pd

        columns: dict[str, Any] = {
            "row_id": [row.planned.cell.row_id for row in self.rows],
            "persona": [row.planned.cell.persona for row in self.rows],
            "case": [row.planned.cell.case for row in self.rows],
            "prompt": pd.Series([row.planned.text for row in self.rows], dtype=object),
            "gen_text": pd.Series(texts_of(self.locations), dtype=object),
        }
        return pd.DataFrame(columns)

    def records(self) -> Iterator[CellRecord]:
        """Every row in full, as it was committed, shard by shard; ``record.cell`` says which row it is."""
        return read_records(self.locations)

    @cached_property
    def locations(self) -> Locations:
        """Where each row stands on disk."""
        return Locations.of(self.rows)

    @cached_property
    def _cells(self) -> pd.DataFrame:
        """The table itself, shared by everything that asks for it: ``table()`` gives a copy."""
        table = cells_table(self.rows, self.locations, self.frame.layout, self.frame.plan.intervention_names)
        table.attrs.update(self.frame.attrs)
        return table

    def _matching(self, key: str, names: Sequence[str | int]) -> View:
        """Rows whose attribute is among ``names``, in the order of the names.

        Raises:
            UnknownName: a name that the plan does not hold.
        """
        known = self.frame.known(key)
        for name in names:
            require_known(key, name, known)
        order = {name: rank for rank, name in reversed(list(enumerate(names)))}
        attribute = self.frame.attribute(key)
        values = (attribute(row.planned.cell, row.persona, row.case) for row in self.rows)
        found = [(order[value], row) for value, row in zip(values, self.rows, strict=True) if value in order]
        return View(tuple(row for _, row in sorted(found, key=lambda one: one[0])), self.frame)

    def _where(self, expression: str) -> View:
        """Rows for which a pandas expression over the columns of ``table()`` is true.

        Raises:
            ProbeError: it is no condition over these columns.
        """
        try:
            found: Any = self._cells.eval(expression, engine="python", local_dict={}, global_dict={})
        except (NameError, SyntaxError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise ProbeError(f"where={expression!r} is no condition over the table's columns: {error}") from error
        if getattr(found, "dtype", None) != np.bool_ or np.shape(found) != (len(self.rows),):
            raise ProbeError(f"where={expression!r} must be true or false for each row, as in 'margin > 2'")
        return View(tuple(row for row, keep in zip(self.rows, found, strict=True) if keep), self.frame)

    @cached_property
    def _positions(self) -> dict[str, Locations]:
        return {}

    def _entries(self, position: str, missing: Missing) -> Locations:
        if position not in self._positions:
            self._positions[position] = self.locations.entries(position)
        entries = self._positions[position]
        if missing == "raise":
            self._require(entries.places >= 0, position, 'missing="drop" or "nan"')
        return entries

    def _require(self, present: np.ndarray, site: str, remedy: str) -> None:
        absent = np.flatnonzero(~present)
        if absent.size:
            first = self.rows[absent[0]].planned.cell
            raise StoreError(
                f"{absent.size} of {len(self.rows)} rows have no {site!r} (first: {first.persona}/{first.case}); "
                f"select others, or ask with {remedy}"
            )
