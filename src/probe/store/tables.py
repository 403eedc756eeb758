"""The table of cells. Knows its columns; reads label logits from shards, no activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.store.locations import Locations, Row
from probe.store.manifests import Layout
from probe.store.packing import in_order

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class LabelVariants:
    """The single tokens that were summed for each label at one answer site, and what each was given.

    ``ids`` int32 and ``logp`` float32 (nats, from the full softmax) are ``[rows, labels, variants]``; beyond a label's
    own variants, and where a row has no such site, they hold -1 and NaN.
    """

    ids: np.ndarray
    logp: np.ndarray


def at_site(rows: Locations, tensors: Mapping[str, int | None], site: str) -> dict[str, np.ndarray]:
    """Label tensors at one answer site, each ``[rows]`` or ``[rows, width]``, float32; NaN where the site is absent."""
    n = len(rows)
    out = {t: np.full((n,) if width is None else (n, width), np.nan, np.float32) for t, width in tensors.items()}
    for shard, slots, places in rows.pieces:
        sites = shard.listed("label_sites")
        if site in sites:
            for tensor, found in shard.take_all(tensors, places).items():
                out[tensor][slots] = found[:, sites.index(site)]
    return out


def variants_at(rows: Locations, site: str, n_labels: int) -> LabelVariants:
    """The variants of each label at one answer site; their number is the largest that a shard holds."""
    parts = []
    for shard, slots, places in rows.pieces:
        sites = shard.listed("label_sites")
        if site in sites and shard.has("label_variant_ids"):
            found = shard.take_all(("label_variant_ids", "label_variant_logp"), places)
            parts.append((slots, *(array[:, sites.index(site)] for array in found.values())))
    width = max((ids.shape[2] for _, ids, _ in parts), default=0)
    shape = (len(rows), n_labels, width)
    read = LabelVariants(np.full(shape, -1, np.int32), np.full(shape, np.nan, np.float32))
    for slots, ids, logp in parts:
        read.ids[slots, :, : ids.shape[2]], read.logp[slots, :, : ids.shape[2]] = ids, logp
    return read


def top_ids_at(rows: Locations, site: str) -> np.ndarray:
    """The most probable next token at one answer site, int32 ``[rows]``; -1 where there is no site, or no such read."""
    found = np.full(len(rows), -1, np.int32)
    for shard, slots, places in rows.pieces:
        sites = shard.listed("label_sites")
        if site in sites and shard.has("topk_ids"):
            top = shard.take("topk_ids", places)[:, sites.index(site)]
            found[slots] = top[:, 0] if top.shape[1] else -1
    return found


def cells_table(
    rows: Sequence[Row], locations: Locations, layout: Layout, interventions: Mapping[str, str]
) -> pd.DataFrame:
    """One line per row, in the order given; docs/FORMAT.md describes the columns. ``interventions`` name hashes."""
    import pandas as pd

    def names(values: Sequence[str | None]) -> pd.Series:
        return pd.Series(values, dtype=object)  # so that a missing name stays None

    options = layout.options
    widths = {"label_logp": len(options), "label_mass": None, "entropy": None}
    prompt, answer = (
        {tensor: array.astype(np.float64) for tensor, array in at_site(locations, widths, site).items()}
        for site in ("prompt_end", "answer")
    )
    logp, stated = prompt["label_logp"], answer["label_logp"]
    told = [imported(row) for row in rows]
    reads = zip(logp, told, strict=True)
    latent = [by.get("y_latent") if np.isnan(read).any() else options[int(np.argmax(read))] for read, by in reads]
    columns: dict[str, Any] = {
        "case": [row.planned.cell.case for row in rows],
        "family": [row.case.get("family", "") for row in rows],
        "persona": [row.planned.cell.persona for row in rows],
        "role": [row.persona.get("role", "") for row in rows],
        "style": [row.persona.get("style", "") for row in rows],
        "stratum": [row.case.get("stratum", "") for row in rows],
        "condition": [row.planned.cell.condition.name for row in rows],
        "target": names([row.case.get("target") for row in rows]),
        "y_latent": names(latent),
        "y_gen": names([row.located.entry["label"] for row in rows]),
        "status": [row.located.entry["status"] for row in rows],
        "letter": names([row.located.entry["letter"] for row in rows]),
        "letter_first": [bool(row.located.entry.get("letter_first")) for row in rows],
        "parser": [str((row.located.entry.get("extra") or {}).get("parser", "")) for row in rows],
    }
    if any("category" in row.case for row in rows):
        columns["category"] = names([row.case.get("category") for row in rows])
    columns |= {f"logp_{option}": logp[:, k] for k, option in enumerate(options)}
    columns |= {f"stated_logp_{option}": stated[:, k] for k, option in enumerate(options)}
    columns |= {
        "label_mass": prompt["label_mass"],
        "margin": _margin(logp),
        "entropy": prompt["entropy"],
        "stated_label_mass": answer["label_mass"],
        **_further_sites(locations, options),
        "n_prompt": _lengths("n_prompt", rows, told),
        "n_gen": _lengths("n_gen", rows, told),
    }
    columns["nonfinite"] = np.array([int(row.located.entry.get("nonfinite", 0)) for row in rows], np.int64)
    for field in ("wording", "instruction", "rotation", "placement", "prefix", "seed"):
        columns[field] = [getattr(row.planned.cell.condition, field) for row in rows]
    hashes = [row.planned.cell.condition.intervention for row in rows]
    columns["intervention"] = [interventions[one] for one in hashes]
    if any(hashes):
        columns["intervention_sha"] = hashes
    columns["edition"] = [row.planned.cell.condition.edition for row in rows]
    columns["given"] = [row.planned.cell.condition.given for row in rows]
    if any(columns["given"]):
        extras = [row.located.entry.get("extra") or {} for row in rows]
        columns["given_logp"] = np.array([extra.get("given_logp", np.nan) for extra in extras], np.float64)
    columns["row_id"] = [row.planned.cell.row_id for row in rows]
    for channel, prefix in (("direct", "planned_logp_"), ("reasoned", "planned_stated_logp_")):
        planned = _planned(rows, channel, len(options))
        if planned is not None:
            columns |= {f"{prefix}{option}": planned[:, k] for k, option in enumerate(options)}
    return pd.DataFrame(columns)


def _further_sites(locations: Locations, options: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of the answer sites beside the end of the prompt and the letter's own, by the name of the site."""
    listed = (site for shard, _, _ in locations.pieces for site in shard.listed("label_sites"))
    columns: dict[str, np.ndarray] = {}
    for site in in_order(name for name in listed if name not in ("prompt_end", "answer")):
        found = at_site(locations, {"label_logp": len(options), "label_mass": None}, site)
        logp = found["label_logp"].astype(np.float64)
        columns |= {f"{site}_logp_{option}": logp[:, k] for k, option in enumerate(options)}
        columns[f"{site}_label_mass"] = found["label_mass"].astype(np.float64)
    return columns


def imported(row: Row) -> Mapping[str, Any]:
    """What an import told of a row in place of what a capture would have recorded; empty for captured rows."""
    told = row.located.entry.get("extra", {}).get("imported")
    return told if isinstance(told, Mapping) else {}


def _lengths(name: str, rows: Sequence[Row], told: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Tokens of each row's prompt or answer; -1 where nobody told."""
    pairs = zip(rows, told, strict=True)
    return np.array([by.get(name, row.located.entry.get(name, -1)) for row, by in pairs], np.int64)


def _margin(logp: np.ndarray) -> np.ndarray:
    """Log-probability of the best option minus that of the second, in nats; NaN where the site is absent."""
    if logp.shape[1] < 2:
        return np.full(len(logp), np.nan)
    top = np.sort(logp, axis=1)
    return np.asarray(top[:, -1] - top[:, -2])


def _planned(rows: Sequence[Row], channel: str, n_options: int) -> np.ndarray | None:
    """Log of the planned distribution ``[rows, options]``; NaN where a row has none, None where no row has one."""
    planned = [(row.planned.planned or {}).get(channel) for row in rows]
    if all(values is None for values in planned):
        return None
    with np.errstate(divide="ignore"):
        return np.log(np.array([values or [np.nan] * n_options for values in planned], np.float64))
