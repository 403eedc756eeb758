"""The table of cells. Knows its columns; reads label logits from shards, no activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.store.manifests import Layout
from probe.store.shards import Located, Shard
from probe.values import PlannedRow

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Row:
    """One committed row of the latest plan, with its persona and case as the plan lists them."""

    planned: PlannedRow
    persona: Mapping[str, Any]
    case: Mapping[str, Any]
    located: Located


def by_shard(rows: Sequence[Row]) -> Iterator[tuple[Shard, np.ndarray, np.ndarray]]:
    """For each shard that holds some of ``rows``: the shard, their places in ``rows``, their places in the shard."""
    shards: dict[str, tuple[Shard, list[int]]] = {}
    for slot, row in enumerate(rows):
        shards.setdefault(row.located.shard.path.name, (row.located.shard, []))[1].append(slot)
    for shard, slots in shards.values():
        places = np.array([rows[slot].located.row for slot in slots])
        order = np.argsort(places, kind="stable")
        yield shard, np.array(slots)[order], places[order]


def at_site(rows: Sequence[Row], tensor: str, site: str, width: int | None = None) -> np.ndarray:
    """A label tensor at one answer site, ``[rows]`` or ``[rows, width]``, float32; NaN where the site is absent."""
    out = np.full((len(rows),) if width is None else (len(rows), width), np.nan, np.float32)
    for shard, slots, places in by_shard(rows):
        sites = shard.listed("label_sites")
        if site in sites:
            out[slots] = shard.take(tensor, places)[:, sites.index(site)]
    return out


def cells_table(rows: Sequence[Row], layout: Layout) -> pd.DataFrame:
    """One line per row, in the order given; docs/FORMAT.md describes the columns."""
    import pandas as pd

    def names(values: Sequence[str | None]) -> pd.Series:
        return pd.Series(values, dtype=object)  # so that a missing name stays None

    options = layout.options
    logp = at_site(rows, "label_logp", "prompt_end", len(options)).astype(np.float64)
    stated = at_site(rows, "label_logp", "answer", len(options)).astype(np.float64)
    latent = [None if np.isnan(read).any() else options[int(np.argmax(read))] for read in logp]
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
    }
    columns |= {f"logp_{option}": logp[:, k] for k, option in enumerate(options)}
    columns |= {f"stated_logp_{option}": stated[:, k] for k, option in enumerate(options)}
    columns |= {
        "label_mass": at_site(rows, "label_mass", "prompt_end").astype(np.float64),
        "margin": _margin(logp),
        "entropy": at_site(rows, "entropy", "prompt_end").astype(np.float64),
        "stated_label_mass": at_site(rows, "label_mass", "answer").astype(np.float64),
        "n_prompt": np.array([row.located.entry.get("n_prompt", -1) for row in rows], np.int64),
        "n_gen": np.array([row.located.entry.get("n_gen", -1) for row in rows], np.int64),
    }
    for field in ("wording", "instruction", "rotation", "placement", "prefix", "seed", "intervention"):
        columns[field] = [getattr(row.planned.cell.condition, field) for row in rows]
    columns["row_id"] = [row.planned.cell.row_id for row in rows]
    for channel, prefix in (("direct", "planned_logp_"), ("reasoned", "planned_stated_logp_")):
        planned = _planned(rows, channel, len(options))
        if planned is not None:
            columns |= {f"{prefix}{option}": planned[:, k] for k, option in enumerate(options)}
    return pd.DataFrame(columns)


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
