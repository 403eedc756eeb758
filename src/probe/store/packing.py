"""Cell records to the tensors and the row table of one shard, and back. Knows what a record holds; opens no file."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from probe.store.manifests import SCHEMA, Layout, StreamLayout
from probe.store.plans import cell_name
from probe.store.shard_format import DTYPES, Encoded, as_bytes, encode, ragged_crcs, row_crcs
from probe.store.sums import SETS, names_at, sets_of, tensors_of
from probe.values import POSITIONS, CellRecord, LabelRead, ProbeError, canonical_json
from probe.values.cells import STATUSES
from probe.values.sums import sums_of

ABSENT_READ = np.float32(np.nan)
"""Label arrays are dense over sites; where a row has no such site they hold this, and its ``label_mass`` says so."""

UNKNOWN_INDEX = -2
"""The token index of a site that is there, captured by a tool that did not say at which token: imports only."""

RAGGED = ("tokens", "gen_tokens", "gen_text")
GIVEN_LOGP = "given_logp"
"""Ragged too; a shard without given texts has no such tensor."""

ACTIVATIONS = re.compile(r"(?P<stream>[a-z_]+)\.(?P<position>.+)\.L(?P<layer>\d{2,})")
"""The name of a tensor of activations; checksums begin with ``crc.``, which no stream is called."""

_RESID_DTYPES = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"]}
_EXPONENT = np.uint16(0x7F80)
"""The exponent bits of bfloat16: all of them are set in infinities and NaN, and in nothing else."""
_NONFINITE = "record the row with fail() instead, or count the values in `nonfinite`"


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
    digests: dict[str, str] = {}
    crcs: dict[str, np.ndarray] = {}
    if layout.moments:
        tensors |= _added_up(records, positions, layout)
    for position in positions if layout.moments is None else ():
        rows = [row for row, record in enumerate(records) if position in record.resid]
        if rows:
            tensors[f"rows.{position}"] = np.array(rows, np.int32)
            blocks: dict[str, _Block] = {}
            for stream in layout.streams:
                names = [tensor_name(stream.name, position, layer) for layer in stream.layers]
                own = _blocks([records[row].at(stream.name)[position] for row in rows], names)
                if not all(block.finite for block in own.values()):
                    _check_finite(records, position, stream)
                blocks |= own
            tensors |= {name: block.array for name, block in blocks.items()}
            crcs |= {f"crc.{name}": block.crcs for name, block in blocks.items()}
            digests |= {name: block.sha256 for name, block in blocks.items()}
    crcs |= {f"crc.{name}": row_crcs(array) for name, array in tensors.items() if f"crc.{name}" not in crcs}
    ragged = dict(zip(RAGGED, zip(*map(_runs, records), strict=True), strict=True))
    if any(record.given_logp for record in records):
        ragged[GIVEN_LOGP] = tuple(np.array(record.given_logp, np.float32) for record in records)
    for name, runs in ragged.items():
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
    return encode(tensors | crcs, metadata, digests)


def _added_up(records: Sequence[CellRecord], positions: Sequence[str], layout: Layout) -> dict[str, np.ndarray]:
    """The activations of a shard as sums over its sets, and which rows are in them.

    A row that is not finite, and says so, is in none at that position.
    """
    assert layout.moments is not None
    sets = sets_of(records)
    tensors: dict[str, np.ndarray] = {SETS: sets}
    for position in positions:
        there = [row for row, record in enumerate(records) if position in record.resid]
        for stream in layout.streams:
            finite = [bool(finite_rows(records[row].at(stream.name)[position]).all()) for row in there]
            if not all(finite):
                _check_finite(records, position, stream)
                there = [row for row, sound in zip(there, finite, strict=True) if sound]
        if not there:
            continue
        tensors[f"rows.{position}"] = np.array(there, np.int32)
        group = np.unique(sets[there], return_inverse=True)[1]
        for stream in layout.streams:
            for at, layer in enumerate(stream.layers):
                x = np.stack([records[row].at(stream.name)[position][at] for row in there]).astype(np.float32)
                axes = layout.moments.axes(x.shape[1])
                names = names_at(tensor_name(stream.name, position, layer), axes)
                tensors |= tensors_of(sums_of(x, group, axes), names)
    return tensors


def in_order(names: Iterable[str]) -> list[str]:
    """Different names, the known position rules first in their order, then the others by the alphabet."""
    known = {name: rank for rank, name in enumerate(POSITIONS)}
    return sorted(set(names), key=lambda name: (known.get(name, len(known)), name))


def finite_rows(resid: np.ndarray) -> np.ndarray:
    """For each line of a matrix, such as ``[layer, d_model]``, whether all its values are finite."""
    if resid.dtype == _RESID_DTYPES["bfloat16"]:  # its bits are asked: numpy would widen every value first
        exponents = np.ascontiguousarray(resid).view(np.uint16) & _EXPONENT
        return np.asarray(exponents.max(axis=1, initial=0) < _EXPONENT)
    return np.asarray(np.isfinite(resid).all(axis=1))


def tensor_name(stream: str, position: str, layer: int) -> str:
    """Name of the tensor ``[rows_present, width]`` of one layer of a stream at one position."""
    return f"{stream}.{position}.L{layer:02d}"


def resid_name(position: str, layer: int) -> str:
    """Name of the tensor ``[rows_present, d_model]`` of one residual point at one position."""
    return tensor_name("resid", position, layer)


def read_at(arrays: Mapping[str, np.ndarray], row: int, site: int) -> LabelRead | None:
    """The label read of one row at one site, from the shard's arrays; None where the row has no such site."""
    mass = float(arrays["label_mass"][row, site])
    top_ids, top_logp = _own(arrays, "topk_ids", "topk_logp", row, site)
    if math.isnan(mass) and not top_ids:  # a read that is not finite, which may be stored on request, has its tokens
        return None
    entropy, logp = float(arrays["entropy"][row, site]), arrays["label_logp"][row, site].copy()
    if "label_variant_ids" not in arrays:
        return LabelRead(logp, mass, entropy, top_ids, top_logp)
    variants = [_own(arrays, "label_variant_ids", "label_variant_logp", row, site, k) for k in range(len(logp))]
    ids, values = zip(*variants, strict=True)
    return LabelRead(logp, mass, entropy, top_ids, top_logp, *((ids, values) if any(ids) else ()))


def _own(
    arrays: Mapping[str, np.ndarray], ids: str, values: str, *at: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The token ids and their values at one place of two dense arrays, without what fills these up."""
    if ids not in arrays:
        return (), ()
    own = arrays[ids][at] >= 0
    return tuple(arrays[ids][at][own].tolist()), tuple(arrays[values][at][own].tolist())


def _runs(record: CellRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text = np.frombuffer(record.gen_text.encode("utf-8", "surrogatepass"), np.uint8)
    return np.array(record.prompt_tokens, np.int32), np.array(record.gen_tokens, np.int32), text


@dataclass(frozen=True, eq=False)
class _Block:
    """One layer of a stream, of the rows that have a position, ``[rows_present, width]``, with its checksums."""

    array: np.ndarray
    crcs: np.ndarray
    sha256: str
    finite: bool


def _blocks(rows: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, _Block]:
    """Rows ``[layer, width]`` as one tensor for each layer, by its name.

    Hashes are what a commit costs. They run in threads of their own, without the interpreter's lock, while this one
    gathers the next layer into memory that was asked for at once: the system gives that in large pages.
    """
    gathered = np.empty((len(names), len(rows), rows[0].shape[1]), rows[0].dtype)
    crcs, sums = [], []
    with ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 2) - 1))) as pool:
        for layer, array in enumerate(gathered):
            np.stack([row[layer] for row in rows], out=array)
            sums.append(pool.submit(_digest, array))
            crcs.append(row_crcs(array))
    found = zip(names, gathered, crcs, sums, strict=True)
    return {name: _Block(array, crc, *digest.result()) for name, array, crc, digest in found}


def _digest(array: np.ndarray) -> tuple[str, bool]:
    """sha256 of an array, and whether all of it is finite."""
    return hashlib.sha256(as_bytes(array)).hexdigest(), bool(finite_rows(array).all())


def _labels(records: Sequence[CellRecord], sites: Sequence[str], n_labels: int) -> dict[str, np.ndarray]:
    k = max(len(read.top_ids) for record in records for read in record.labels.values())
    shape = (len(records), len(sites))
    logp = np.full((*shape, n_labels), ABSENT_READ, np.float32)
    mass, entropy = np.full(shape, ABSENT_READ), np.full(shape, ABSENT_READ)
    ids, top = np.full((*shape, k), -1, np.int32), np.full((*shape, k), ABSENT_READ)
    v = max((len(ids) for record in records for read in record.labels.values() for ids in read.variant_ids), default=0)
    variant_ids = np.full((*shape, n_labels, v), -1, np.int32)
    variants = np.full((*shape, n_labels, v), ABSENT_READ)
    for row, record in enumerate(records):
        for at, site in enumerate(sites):
            if (read := record.labels.get(site)) is not None:
                logp[row, at], mass[row, at], entropy[row, at] = read.logp, read.mass, read.entropy
                ids[row, at, : len(read.top_ids)] = read.top_ids
                top[row, at, : len(read.top_ids)] = read.top_logp
                for label, own in enumerate(read.variant_ids):
                    variant_ids[row, at, label, : len(own)] = own
                    variants[row, at, label, : len(own)] = read.variant_logp[label]
    tensors: dict[str, np.ndarray] = {"label_logp": logp, "label_mass": mass, "entropy": entropy}
    if k:
        tensors |= {"topk_ids": ids, "topk_logp": top}
    if v:
        tensors |= {"label_variant_ids": variant_ids, "label_variant_logp": variants}
    return tensors


def _row(record: CellRecord) -> str:
    row: dict[str, Any] = {
        "row_id": record.cell.row_id,
        "persona": record.cell.persona,
        "case": record.cell.case,
        "condition": record.cell.condition.changed,
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


def _check_finite(records: Sequence[CellRecord], position: str, stream: StreamLayout) -> None:
    """Refuse the first row that is not finite at a position and does not say so."""
    for record in records:
        values = record.at(stream.name).get(position)
        if values is not None and not record.nonfinite and not (finite := finite_rows(values)).all():
            name = f"{cell_name(record.cell)} ({record.cell.row_id})"
            layer = stream.layers[int(np.argmin(finite))]
            raise ProbeError(f"row {name}: {stream.name} at {position!r} is not finite at layer {layer}; {_NONFINITE}")


def _check_activations(record: CellRecord, layout: Layout, name: str) -> None:
    """Every stream of the manifest, at every position that the row has, in the shape and dtype of the manifest."""
    known = [stream.name for stream in layout.streams]
    if strange := [stream for stream in record.streams if stream not in known]:
        raise ProbeError(f"row {name}: the manifest's capture.streams has no {strange[0]!r}; it has {', '.join(known)}")
    dtypes = [_RESID_DTYPES[layout.dtype]] if layout.dtype else list(_RESID_DTYPES.values())
    for stream in layout.streams:
        found = record.at(stream.name)
        if found.keys() != record.resid.keys():
            has, needs = (", ".join(in_order(each)) or "none" for each in (found, record.resid))
            raise ProbeError(f"row {name}: {stream.name} has the positions of resid ({needs}); found {has}")
        for position, values in found.items():
            site = f"row {name}: {stream.name} at {position!r}"
            if record.positions.get(position, -1) < 0 and record.positions.get(position) != UNKNOWN_INDEX:
                raise ProbeError(f"{site} needs a position >= 0 in `positions`; an absent site has no key in `resid`")
            if values.ndim != 2 or len(values) != len(stream.layers) or stream.width not in (None, values.shape[1]):
                expected = f"[{len(stream.layers)}, {stream.width or 'd_model'}]"
                raise ProbeError(f"{site} has the shape {expected} of the manifest; found {list(values.shape)}")
            if values.dtype not in dtypes:
                wanted = " or ".join(dtype.name for dtype in dtypes)
                raise ProbeError(f"{site} is stored as {wanted}, never converted silently; found {values.dtype}")


def _check(record: CellRecord, layout: Layout) -> None:
    name = f"{cell_name(record.cell)} ({record.cell.row_id})"
    if record.status not in STATUSES:
        raise ProbeError(f"row {name}: status is one of {', '.join(STATUSES)}; found {record.status!r}")
    if record.label is not None and record.label not in layout.options:
        raise ProbeError(f"row {name}: its label is one of {', '.join(layout.options)}; found {record.label!r}")
    _check_activations(record, layout, name)
    if record.given_logp and len(record.given_logp) != len(record.gen_tokens):
        raise ProbeError(
            f"row {name}: a given text has one log-probability for each of its {len(record.gen_tokens)} tokens; found "
            f"{len(record.given_logp)}"
        )
    if not record.nonfinite and not np.isfinite(record.given_logp).all():
        raise ProbeError(f"row {name}: the log-probabilities of its given text are not finite; {_NONFINITE}")
    for site, read in record.labels.items():
        if np.shape(read.logp) != (len(layout.options),):
            raise ProbeError(f"row {name}: labels at {site!r} need {len(layout.options)} log-probabilities")
        variants = [len(ids) for ids in read.variant_ids]
        if variants != [len(logp) for logp in read.variant_logp] or len(variants) not in (0, len(layout.options)):
            raise ProbeError(f"row {name}: labels at {site!r} need one log-probability for each variant of each label")
        entropy = () if math.isnan(read.entropy) and not read.top_ids else (read.entropy,)  # an import may not know it
        values = [*read.logp, read.mass, *entropy, *read.top_logp, *chain.from_iterable(read.variant_logp)]
        if not record.nonfinite and not np.isfinite(values).all():
            raise ProbeError(f"row {name}: labels at {site!r} are not finite; {_NONFINITE}")
