"""Persona directions and their geometry, from a store. Imports no torch; captures nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from probe import behaviour, report
from probe.mechanism.activations import Activations
from probe.mechanism.geometry.directions import (
    MAKERS,
    Contrast,
    Judged,
    contrast_of,
    judge,
    training_families,
)
from probe.mechanism.geometry.summed_directions import (
    SUM_MAKERS,
    SummedContrast,
    contrast_of_lines,
    judge_by_sums,
    training_blocks,
)
from probe.mechanism.geometry.tables import GeometryTables, geometry
from probe.mechanism.splits import families_of
from probe.report import geometry as report_geometry
from probe.stages.activations import activations, added_up
from probe.stages.analysis import DEFAULT_BASE, MAIN_POSITION, save_tables, study_of
from probe.stages.direction_files import save_directions
from probe.stages.terminal_geometry import show_geometry
from probe.store import Store
from probe.values import Direction, ProbeError
from probe.values.nearest import nearest

FOLDER = "directions"
"""Where the directions of a study lie, in the folder of its figures."""


@dataclass(frozen=True, eq=False)
class MadeDirections:
    """Directions of every persona, layer, position and maker, and a table of how each fares on other case families.

    The table: persona, base, layer, position, maker, norm, n (cases that fitted it), value, low, high (cosine with the
    shift of the other cases), n_judged, auroc, projection, with_paired_mean (cosine), note.
    """

    directions: tuple[Direction, ...]
    table: pd.DataFrame


def geometry_tables(store: Store, *, base: str | None = None, rng: np.random.Generator | None = None) -> GeometryTables:
    """Norms, cosines, shared variance, role and style, and stability of every persona's shift, layer by layer.

    Against the base persona (by default the study's own) and against the mean of the control wordings.

    Raises:
        ProbeError: the base that was asked for was not captured.
    """
    read = _with_progress(_read(store), "geometry")
    return geometry(read, base=_base(store, read, base), seed=store.plan.split_seed, rng=rng)


def make_directions(store: Store, *, base: str | None = None) -> MadeDirections:
    """Every maker's direction of every persona at every captured site, fitted on the training families alone.

    Families are split by their hash with the study's ``split_seed``. Where a maker is undefined (no residual differs,
    the position is absent) the table has a row that says so, and there is no direction.

    Raises:
        ProbeError: the base that was asked for was not captured.
    """
    read = _with_progress(_read(store), "directions")
    of = _base(store, read, base)
    told = provenance_of(store)
    summed = read.lines is not None
    train = training_blocks() if summed else training_families(families_of(read.table), store.plan.split_seed)
    made: list[Direction] = []
    rows: list[dict[str, object]] = []
    for contrast in _contrasts(read, of):
        found, table = _made_from(contrast, train) if isinstance(contrast, Contrast) else _made_of(contrast, train)
        made += [replace(one, provenance=told) for one in found]
        rows += table
    return MadeDirections(tuple(made), pd.DataFrame(rows))


def save_made(folder: Path, made: MadeDirections) -> list[Path]:
    """One file for each position and maker, with all personas and layers, under ``directions/``."""
    kinds = dict.fromkeys((one.site.position, one.maker) for one in made.directions)
    return [
        save_directions(
            folder / FOLDER / f"{position}.{maker}.safetensors",
            [one for one in made.directions if (one.site.position, one.maker) == (position, maker)],
        )
        for position, maker in kinds
    ]


def write_directions(
    store: Store, folder: Path, *, base: str | None = None, found: GeometryTables | None = None
) -> list[Path]:
    """Geometry and directions of a store: tables (CSV), figures, files of directions; and the main result on screen.

    ``found`` is the geometry of this store where it was computed before.
    """
    found = geometry_tables(store, base=base) if found is None else found
    made = make_directions(store, base=base)
    show_geometry(found, made.table)
    drawn = geometry_figures(found)
    written = save_tables(folder, {**vars(found), "directions": made.table})
    written += [path for name, figure in drawn.items() for path in report.save(figure, folder, name)]
    return [*written, *save_made(folder, made)]


def geometry_figures(tables: GeometryTables) -> dict[str, report.Drawn]:
    """The figures that these tables allow, at ``prompt_end``, or at the first position where that was not captured.

    Cosines are drawn at the residual point nearest to two thirds of the depth.
    """
    if tables.norms.empty:
        return {}
    positions, layers = (list(dict.fromkeys(tables.norms[name])) for name in ("position", "layer"))
    at = MAIN_POSITION if MAIN_POSITION in positions else positions[0]
    deep = min(layers, key=lambda layer: abs(layer - 2 / 3 * max(layers)))
    drawn = {"norms": report_geometry.draw_norms(tables.norms, position=at)}
    if len(tables.cosines) and (tables.cosines["layer"] == deep).any():
        drawn["cosines"] = report_geometry.draw_cosines(tables.cosines, position=at, layer=deep)
    drawn["stability"] = report_geometry.draw_stability(tables.stability, tables.agreement, position=at)
    if len(tables.role_style) and (tables.role_style["position"] == at).any():
        drawn["role_style"] = report_geometry.draw_role_style(tables.role_style, position=at)
    return drawn


def provenance_of(store: Store) -> dict[str, str | int]:
    """What a direction must say of its origin: model, store, study, split and versions."""
    model, study = store.manifest["model"], study_of(store)
    depth = store.manifest["capture"].get("n_layers")
    return {
        "model": str(model["id"]),
        "revision": str(model.get("revision") or ""),
        "weights_sha256": str(model.get("weights_sha256", "")),
        "store": store.layout.identity,
        "plan": store.plan.hash,
        "study": str(study.get("name", store.name)),
        "split_seed": store.plan.split_seed,
        "fitted_part": "train",
        **({} if depth is None else {"n_layers": int(depth)}),
        "captured_by": str(store.manifest.get("created_by", "")),
        "made_by": f"persona-probe {version('persona-probe')}",
    }


def _read(store: Store) -> Activations:
    """The cells, one per row of their table; of a store that keeps sums, one line per sum."""
    return activations(store) if store.layout.moments is None else added_up(store)


def _contrasts(read: Activations, base: str) -> Iterator[Contrast | SummedContrast]:
    """Every persona against the base persona, and against the control wordings, at every site."""
    persona = read.table["persona"].to_numpy(dtype=object)
    neutral = behaviour.control_personas(read.table)
    bases = {base: persona == base, behaviour.CONTROLS: np.isin(persona, list(neutral))}
    names = [name for name in dict.fromkeys(persona.tolist()) if name != base]
    for position in read.positions:
        for site in read.sites(position):
            for of, mask in bases.items():
                for name in (one for one in names if mask.any() and (of == base or one not in neutral)):
                    contrast = contrast_of if site.lines is None else contrast_of_lines
                    yield contrast(read.table, site, name, of, mask)


def _made_from(contrast: Contrast, train: frozenset[str]) -> tuple[list[Direction], list[dict[str, object]]]:
    """The directions of one contrast, and their rows of the table."""
    fitted = contrast.only(train)
    others = contrast.only(frozenset(map(str, contrast.family.tolist())) - train)
    makers = {name: partial(maker, fitted) for name, maker in MAKERS.items()}
    return _made(_where(contrast), makers, lambda made: judge(made, others))


def _made_of(contrast: SummedContrast, train: frozenset[str]) -> tuple[list[Direction], list[dict[str, object]]]:
    """The same from sums over blocks of families."""
    fitted = contrast.only(train)
    others = contrast.only(frozenset(map(str, contrast.block.tolist())) - train)
    makers = {name: partial(maker, fitted) for name, maker in SUM_MAKERS.items()}
    return _made(_where(contrast), makers, lambda made: judge_by_sums(made, others), contrast.note)


def _where(contrast: Contrast | SummedContrast) -> dict[str, object]:
    site = contrast.site
    return {
        "persona": contrast.persona,
        "base": contrast.base,
        "layer": site.layer,
        "position": site.position,
    }


def _made(
    where: Mapping[str, object],
    makers: Mapping[str, Callable[[], Direction]],
    judged: Callable[[Direction], Judged],
    note: str = "",
) -> tuple[list[Direction], list[dict[str, object]]]:
    found: list[Direction] = []
    rows: list[dict[str, object]] = []
    reference = None
    for name, maker in {"paired_mean": makers["paired_mean"], **makers}.items():
        try:
            made = maker()
        except ProbeError as error:
            rows.append({**where, "maker": name, "value": np.nan, "note": f"undefined: {error}"})
            continue
        reference = made.vector if name == "paired_mean" else reference
        found.append(made)
        row = _row(made, judged(made), reference)
        rows.append({**where, "maker": name, **row, "note": "; ".join(filter(None, (str(row["note"]), note)))})
    return found, rows


def _row(made: Direction, judged: Judged, reference: np.ndarray | None) -> dict[str, object]:
    norm = float(np.linalg.norm(made.vector))
    cosine = np.nan
    if reference is not None:
        cosine = float(made.vector @ reference / (norm * np.linalg.norm(reference)))
    found = judged.cosine
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return {
        "norm": norm,
        "n": made.n_cases,
        **{name: np.nan if end is None else end for name, end in ends.items()},
        "n_judged": found.n,
        "auroc": judged.auroc,
        "projection": judged.projection,
        "with_paired_mean": cosine,
        "method": found.method,
        "note": found.note,
    }


def _base(store: Store, read: Activations, asked: str | None) -> str:
    """The base persona. One that was asked for must be there; the default need not."""
    if asked is None:
        return str(study_of(store).get("base", DEFAULT_BASE))
    personas = list(dict.fromkeys(read.table["persona"]))
    if asked not in personas:
        raise ProbeError(f"the base persona {asked!r} is not in the table. {nearest(asked, personas, 'persona')}")
    return asked


def _with_progress(read: Activations, what: str) -> Activations:
    """The same activations, with a bar over the sites that are read."""
    bar: Iterable[int] = iter(tqdm(range(len(read.layers) * len(read.positions)), desc=what, unit="site", leave=False))
    seen: set[tuple[int, str]] = set()

    def counted(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        if (layer, position) not in seen:
            seen.add((layer, position))
            next(iter(bar), None)
        return read.read(layer, position)

    return replace(read, read=counted)
