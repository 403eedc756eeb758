"""What goes into a store from elsewhere and out of it. Knows the commands' order; knows no format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.stages.importing import Origin, run_import
from probe.stages.terminal import say
from probe.store import View, open_store
from probe.store.formats import export


@dataclass(frozen=True)
class Wanted:
    """Which rows and sites are exported; empty means all."""

    persona: tuple[str, ...] = ()
    where: str | None = None
    layers: tuple[int, ...] = ()
    positions: tuple[str, ...] = ()

    def rows(self, store: str) -> View:
        """The rows of the store at a path or URL."""
        return open_store(store).select(persona=list(self.persona) or None, where=self.where)


def export_store(store: str, to: str, out: Path, wanted: Wanted) -> None:
    """Write a selection of a store in another tool's format, and say what was written."""
    view = wanted.rows(store)
    written = export(view, to, out, layers=wanted.layers or None, positions=wanted.positions or None)
    say(f"wrote {len(view)} rows to {written}")


def import_files(
    table: Path, activations: Sequence[Path], store: str, origin: Origin, *, name_map: Path | None, rows: Path | None
) -> None:
    """Make a store of another tool's files, and say what it holds."""
    done = run_import(table, activations, store, origin, name_map=name_map, rows=rows)
    say(f"imported {done.rows} rows into {done.store}")
    if done.left_out:
        say(f"columns that a store has no place for were left out: {', '.join(done.left_out)}")
