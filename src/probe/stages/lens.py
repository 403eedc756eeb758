"""The label lens of a store: which cells, which labels, which content-free cases. Imports no torch; draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from probe import behaviour
from probe.mechanism import Activations
from probe.mechanism.lens.attribution import attribution_table, components_of
from probe.mechanism.lens.depth import depth_table
from probe.mechanism.lens.head import LabelHead, label_head, project, token_places
from probe.mechanism.lens.reads import LabelSite, LensQuestion, LensReads, no_lens, read_lens
from probe.mechanism.lens.tables import agreement_table, contrast_table, paired_shifts, reliability_table
from probe.mechanism.probes.readable import readable_table
from probe.report.drawn import Drawn, save
from probe.report.lens import lens_figures
from probe.report.persona_picture import draw_persona_picture
from probe.stages.activations import activations, without_content
from probe.stages.analysis import DEFAULT_BASE, cells, save_tables, study_of
from probe.stages.places import figures_path
from probe.stages.targets import open_target
from probe.stages.terminal import announce_files, say
from probe.store import Store, View
from probe.values import LABEL_SITES, ProbeError
from probe.values.nearest import nearest

_HALF = ("bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class LensTables:
    """What the label lens says of a store, in tidy tables, the positions of each below one another.

    ``contrasts``: levels and shifts of the label contrasts, by layer; ``agreement`` of each layer's label with latent
    and stated label; ``reliability`` of the lens beside the held-out readout; ``depths`` at which each persona's shift
    arises; ``attribution`` of the shift to components; ``checks`` of the lens against the pass's own contrasts;
    ``readable``: AUROC of latent label, stated label and disagreement by persona, where it was asked for.
    """

    contrasts: pd.DataFrame
    agreement: pd.DataFrame
    reliability: pd.DataFrame
    depths: pd.DataFrame
    attribution: pd.DataFrame
    checks: pd.DataFrame
    readable: pd.DataFrame = field(default_factory=pd.DataFrame)


def lens_tables(
    store: Store,
    *,
    base: str | None = None,
    content_free: Sequence[str] = (),
    readable: bool = False,
    rng: np.random.Generator | None = None,
) -> LensTables:
    """Read every captured layer of a store with the model's own final norm and unembedding, at every answer site.

    ``content_free`` names cases whose input says nothing, by default those that are ``N/A``, ``[MASK]`` or the like;
    without any, the base persona's mean over training cases stands for them. ``readable`` also fits the probes behind
    the picture of each persona. ``rng`` draws the resamples of the cases.

    Raises:
        ProbeError: the base or a case is not there, no answer site was captured, or the lens does not reproduce the
            label contrasts that the passes recorded.
        StoreError: the store has no readout.
    """
    rng = rng or np.random.default_rng(0)
    view = store.select(given="", intervention="")
    acts = _slim(activations(view), cells(store))
    head = label_head(*store.readout())
    asked = _question(store, acts, base, frozenset(content_free) or without_content(store))
    bases = _bases(acts.table, asked.base)
    sites = [site for site in LABEL_SITES if site in acts.positions and _has_labels(view, site)]
    if not sites:
        raise ProbeError(
            f"a lens reads the residual where labels are read ({', '.join(LABEL_SITES)}); captured were "
            f"{', '.join(acts.positions)}; add one of these to capture.positions"
        )
    found = []
    with tqdm(total=len(sites) * (len(acts.layers) + 1), desc="lens", unit="layer") as bar:
        for position in sites:
            site = LabelSite(
                position,
                token_places(head, view.label_variants(position).ids),
                np.asarray(view.label_logp(position, missing="nan"), np.float64),
            )
            if (site.places < 0).all():
                found.append(_absent(position, no_lens(position)))
                continue
            reads = read_lens(_watched(acts, bar.update), head, site, asked)
            terms = _terms(view, acts, head, reads) if reads.check is not None else {}
            found.append(_tables(reads, head, terms, bases, rng))
    if all(tables.contrasts.empty for tables in found):
        raise ProbeError("; ".join(found[0].checks["note"]))
    whole = LensTables(**{own.name: _stacked([getattr(one, own.name) for one in found]) for own in _FIELDS})
    return replace(whole, readable=_readable(acts, asked)) if readable else whole


_FIELDS = fields(LensTables)


def _tables(
    reads: LensReads,
    head: LabelHead,
    terms: dict[tuple[str, int], np.ndarray],
    bases: list[str],
    rng: np.random.Generator,
) -> LensTables:
    shifts = paired_shifts(reads, bases, rng)
    reliable = reliability_table(reads, shifts, rng)
    return LensTables(
        contrasts=contrast_table(reads, shifts, rng),
        agreement=agreement_table(reads, rng),
        reliability=reliable,
        depths=depth_table(shifts, reads.layers, reads.position, reliable),
        attribution=attribution_table(reads, head, components_of(reads, terms), bases, rng),
        checks=_check(reads),
    )


def _slim(acts: Activations, table: pd.DataFrame) -> Activations:
    """The same cells without the study in the table's attributes, which pandas copies with every selection."""
    own = acts.table.copy(deep=False)
    own.attrs = {name: table.attrs[name] for name in ("options", "high_risk", "controls") if name in table.attrs}
    return replace(acts, table=own)


def _watched(acts: Activations, tick: Callable[[int], object]) -> Activations:
    def read(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        tick(1)
        return acts.read(layer, position)

    return replace(acts, read=read)


def _question(store: Store, acts: Activations, base: str | None, free: frozenset[str]) -> LensQuestion:
    personas = list(dict.fromkeys(acts.table["persona"]))
    own = str(study_of(store).get("base", DEFAULT_BASE)) if base is None else base
    if base is not None and base not in personas:
        raise ProbeError(f"the base persona {base!r} is not in the store. {nearest(base, personas, 'persona')}")
    known = [str(case["id"]) for case in store.plan.cases]
    for case in sorted(free):
        if case not in known:
            raise ProbeError(f"the content-free case {case!r} is not in the store. {nearest(case, known, 'case')}")
    formats = (str(store.manifest["model"].get("compute_dtype")), str(store.manifest["capture"]["dtype"]))
    return LensQuestion(
        base=own,
        last=int(store.manifest["capture"]["n_layers"]),
        dtype=next((name for name in formats if name in _HALF), "float32"),
        seed=store.plan.split_seed,
        content_free=free,
    )


def _bases(table: pd.DataFrame, base: str) -> list[str]:
    """The base persona, where it was captured, and beside it the mean of the control wordings, where there are any."""
    neutral = behaviour.control_personas(table)
    there = [base] if (table["persona"] == base).any() else []
    return [*there, *([behaviour.CONTROLS] if neutral and set(neutral) != {base} else [])]


def _has_labels(view: View, site: str) -> bool:
    return site in ("prompt_end", "answer") or f"{site}_label_mass" in view.table()


def _terms(view: View, acts: Activations, head: LabelHead, reads: LensReads) -> dict[tuple[str, int], np.ndarray]:
    """Direct parts of what attention and MLP add, by block, where both streams were captured at this position."""
    if not {"attn_out", "mlp_out"} <= set(view.streams):
        return {}
    ids = pd.Index(acts.table["row_id"]).get_indexer(reads.table["row_id"])
    found = {}
    for stream in ("attn_out", "mlp_out"):
        for block in view.frame.sites.layers(stream):
            values = view.resid(stream=stream, layer=block, position=reads.position, missing="nan")
            found[stream, int(block)] = project(head, np.asarray(values)[ids]).direct
    return found


def _readable(acts: Activations, asked: LensQuestion) -> pd.DataFrame:
    """The probes at every captured position of cells with content, with progress."""
    acts = acts.only(~acts.table["case"].astype(str).isin(asked.content_free).to_numpy())
    with tqdm(total=len(acts.positions) * len(acts.layers), desc="probes", unit="layer") as bar:
        watched = _watched(acts, bar.update)
        found = readable_table(watched, behaviour.read_outcomes(acts.table), acts.positions, seed=asked.seed)
    if found.empty:
        say("no picture of a persona: its probes need another persona, three case families and two labels that differ")
    return found


def _check(reads: LensReads) -> pd.DataFrame:
    check = reads.check
    row: dict[str, object] = {"position": reads.position, "baseline": reads.baseline, "rows": len(reads.table)}
    if check is None:
        note = (
            "unchecked: the last residual point was not captured, so the lens could not be held against the model's own"
        )
        return pd.DataFrame([row | {"error": np.nan, "tolerance": np.nan, "without_lens": 0, "note": note}])
    note = f"{check.without} cells have no lens" if check.without else ""
    told = {"error": check.error, "tolerance": check.tolerance, "without_lens": check.without, "note": note}
    return pd.DataFrame([row | told])


def _absent(position: str, why: str) -> LensTables:
    nothing = pd.DataFrame()
    row = {"position": position, "baseline": "", "rows": 0, "error": np.nan, "tolerance": np.nan, "note": why}
    return LensTables(nothing, nothing, nothing, nothing, nothing, pd.DataFrame([row]))


def _stacked(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    full = [part for part in parts if len(part)]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame()


def run_lens(
    target: str | Path,
    *,
    store: str | Path | None = None,
    base: str | None = None,
    content_free: Sequence[str] = (),
    pictures: bool = True,
    out: Path | None = None,
) -> None:
    """The label lens of a study's store: tables as CSV, figures, and its main results here."""
    from probe.stages.terminal_lens import show_lens

    name, opened = open_target(target, store=store)
    tables = lens_tables(opened, base=base, content_free=content_free, readable=pictures)
    folder = figures_path(name, out)
    written = save_tables(folder, named(tables))
    for part, drawn in lens_drawn(tables).items():
        written += save(drawn, folder, part)
    show_lens(tables)
    announce_files(folder, written)


TABLE_NAMES = {
    **{name: f"lens_{name}" for name in ("agreement", "reliability", "depths", "attribution", "checks")},
    "contrasts": "lens",
    "readable": "readable",
}
"""The files of the tables."""


def named(tables: LensTables) -> dict[str, pd.DataFrame]:
    """The tables by the names of their files."""
    return {TABLE_NAMES[name]: table for name, table in vars(tables).items()}


def lens_drawn(tables: LensTables) -> dict[str, Drawn]:
    """Every figure that these tables allow, the pictures of the personas last."""
    return lens_figures(vars(tables)) | _pictures(tables)


def _pictures(tables: LensTables) -> dict[str, Drawn]:
    """The picture of each persona, numbered in the order of the tables: a persona's name may suit no file."""
    if tables.readable.empty:
        return {}
    rest = (tables.readable, tables.agreement, tables.reliability, tables.depths)
    personas = dict.fromkeys(tables.readable["persona"])
    return {f"persona_{i + 1}": draw_persona_picture(str(name), *rest) for i, name in enumerate(personas)}
