"""Cell records to the tensors and the row table of one shard, and back. Knows what a record holds; opens no file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from probe.store.manifests import SCHEMA, Layout
from probe.store.plans import cell_name
from probe.store.shard_format import DTYPES, Encoded, encode, ragged_crcs, row_crcs
from probe.values import POSITIONS, CellRecord, LabelRead, ProbeError, canonical_json
from probe.values.cells import STATUSES

ABSENT_READ = np.float32(np.nan)
"""Label arrays are dense over sites; where a row has no such site they hold this, and its ``label_mass`` says so."""

RAGGED = ("tokens", "gen_tokens", "gen_text")
_RESID_DTYPES = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"]}


def pack(records: Sequence[CellRecord], layout: Layout) -> Encoded:
    """One shard that holds ``records`` in the order given; equal records give equal bytes and an equal name.

    Raises:
        ProbeError: a record does not fit the manifest or is not finite; the message names its row.
    """
    for record in records:
        _check(record, layout)
    positions = in_order(name for record in records for name in record.positions)
    sites = in_order(site for record in records for site in record.labels)
    tensors = _labels(records, sites, len(layout.options)) if sites else {}
    if positions:
        where = [[record.positions.get(name, -1) for name in positions] for record in records]
        tensors["positions"] = np.array(where, dtype=np.int32)
    for position in positions:
        tensors.update(_resid(records, position, layout))
    crcs = {f"crc.{name}": row_crcs(array) for name, array in tensors.items()}
    for name, runs in zip(RAGGED, zip(*map(_runs, records), strict=True), strict=True):
        flat, offsets = np.concatenate(runs), np.cumsum([0, *map(len, runs)], dtype=np.int64)
        tensors |= {name: flat, f"{name}.offsets": offsets}
        crcs |= {f"crc.{name}": ragged_crcs(flat, offsets), f"crc.{name}.offsets": row_crcs(offsets)}
    metadata = {
        "schema": SCHEMA,
        "identity_sha256": layout.identity,
        "layers": canonical_json(layout.layers),
        "positions": canonical_json(positions),
        "label_sites": canonical_json(sites),
        "options": canonical_json(layout.options),
        "rows": f"[{','.join(map(_row, records))}]",
    }
    return encode(tensors | crcs, metadata)


def in_order(names: Iterable[str]) -> list[str]:
    """Different names, the known position rules first in their order, then the others by the alphabet."""
    known = {name: rank for rank, name in enumerate(POSITIONS)}
    return sorted(set(names), key=lambda name: (known.get(name, len(known)), name))


def resid_name(position: str, layer: int) -> str:
    """Name of the tensor ``[rows_present, d_model]`` of one residual point at one position."""
    return f"resid.{position}.L{layer:02d}"


def read_at(arrays: Mapping[str, np.ndarray], row: int, site: int) -> LabelRead | None:
    """The label read of one row at one site, from the shard's arrays; None where the row has no such site."""
    mass = float(arrays["label_mass"][row, site])
    if math.isnan(mass):
        return None
    top_ids: tuple[int, ...] = ()
    top_logp: tuple[float, ...] = ()
    if "topk_ids" in arrays:
        ids = arrays["topk_ids"][row, site]
        top_ids = tuple(ids[ids >= 0].tolist())
        top_logp = tuple(arrays["topk_logp"][row, site][ids >= 0].tolist())
    entropy = float(arrays["entropy"][row, site])
    return LabelRead(arrays["label_logp"][row, site].copy(), mass, entropy, top_ids, top_logp)


def _runs(record: CellRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text = np.frombuffer(record.gen_text.encode("utf-8", "surrogatepass"), np.uint8)
    return np.array(record.prompt_tokens, np.int32), np.array(record.gen_tokens, np.int32), text


def _resid(records: Sequence[CellRecord], position: str, layout: Layout) -> dict[str, np.ndarray]:
    rows = [row for row, record in enumerate(records) if position in record.resid]
    if not rows:
        return {}
    stacked = np.stack([records[row].resid[position] for row in rows], axis=1)
    tensors = {resid_name(position, layer): stacked[k] for k, layer in enumerate(layout.layers)}
    tensors[f"rows.{position}"] = np.array(rows, np.int32)
    return tensors


def _labels(records: Sequence[CellRecord], sites: Sequence[str], n_labels: int) -> dict[str, np.ndarray]:
    k = max(len(read.top_ids) for record in records for read in record.labels.values())
    shape = (len(records), len(sites))
    logp = np.full((*shape, n_labels), ABSENT_READ, np.float32)
    mass, entropy = np.full(shape, ABSENT_READ), np.full(shape, ABSENT_READ)
    ids, top = np.full((*shape, k), -1, np.int32), np.full((*shape, k), ABSENT_READ)
    for row, record in enumerate(records):
        for at, site in enumerate(sites):
            if (read := record.labels.get(site)) is not None:
                logp[row, at], mass[row, at], entropy[row, at] = read.logp, read.mass, read.entropy
                ids[row, at, : len(read.top_ids)] = read.top_ids
                top[row, at, : len(read.top_ids)] = read.top_logp
    tensors = {"label_logp": logp, "label_mass": mass, "entropy": entropy}
    return tensors | {"topk_ids": ids, "topk_logp": top} if k else tensors


def _row(record: CellRecord) -> str:
    row: dict[str, Any] = {
        "row_id": record.cell.row_id,
        "persona": record.cell.persona,
        "case": record.cell.case,
        "condition": asdict(record.cell.condition),
        "prompt_sha": record.prompt_sha,
        "tokens_sha": record.tokens_sha,
        "status": record.status,
        "label": record.label,
        "letter": record.letter,
        "span": record.span,
        "letter_first": record.letter_first,
        "nonfinite": record.nonfinite,
        "n_prompt": len(record.prompt_tokens),
        "n_gen": len(record.gen_tokens),
    }
    if record.extra:
        row["extra"] = dict(record.extra)
    try:
        return canonical_json(row)
    except (TypeError, ValueError) as error:
        raise ProbeError(f"row {cell_name(record.cell)} holds what is not plain JSON: {error}") from error


def _check(record: CellRecord, layout: Layout) -> None:
    name = f"{cell_name(record.cell)} ({record.cell.row_id})"
    if record.status not in STATUSES:
        raise ProbeError(f"row {name}: status is one of {', '.join(STATUSES)}; found {record.status!r}")
    if record.label is not None and record.label not in layout.options:
        raise ProbeError(f"row {name}: its label is one of {', '.join(layout.options)}; found {record.label!r}")
    for position, resid in record.resid.items():
        site = f"row {name}: resid at {position!r}"
        if record.positions.get(position, -1) < 0:
            raise ProbeError(f"{site} needs a position >= 0 in `positions`; an absent site has no key in `resid`")
        if resid.ndim != 2 or len(resid) != len(layout.layers) or layout.d_model not in (None, resid.shape[1]):
            expected = f"[{len(layout.layers)}, {layout.d_model or 'd_model'}]"
            raise ProbeError(f"{site} has the shape {expected} of the manifest; found {list(resid.shape)}")
        dtypes = [_RESID_DTYPES[layout.dtype]] if layout.dtype else list(_RESID_DTYPES.values())
        if resid.dtype not in dtypes:
            wanted = " or ".join(dtype.name for dtype in dtypes)
            raise ProbeError(f"{site} is stored as {wanted}, never converted silently; found {resid.dtype}")
        if not np.isfinite(resid).all():
            layer = layout.layers[int(np.argmin(np.isfinite(resid).all(axis=1)))]
            raise ProbeError(f"{site} is not finite at layer {layer}; record the row with fail() instead")
    for site, read in record.labels.items():
        if np.shape(read.logp) != (len(layout.options),):
            raise ProbeError(f"row {name}: labels at {site!r} need {len(layout.options)} log-probabilities")
        if not np.isfinite([*read.logp, read.mass, read.entropy, *read.top_logp]).all():
            raise ProbeError(f"row {name}: labels at {site!r} are not finite; record the row with fail() instead")
