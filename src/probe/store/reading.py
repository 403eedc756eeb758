"""Whole records back from shards. Knows every tensor of a row; knows nothing of selections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from probe.store.locations import Locations
from probe.store.packing import ACTIVATIONS, GIVEN_LOGP, RAGGED, read_at, tensor_name
from probe.store.plans import cell_of
from probe.store.shards import Shard
from probe.store.sums import SETS
from probe.values import STREAMS, CellRecord

_READS = ("label_logp", "label_mass", "entropy")
_PAIRS = (("topk_ids", "topk_logp"), ("label_variant_ids", "label_variant_logp"))


def read_records(rows: Locations) -> Iterator[CellRecord]:
    """Every row as it was committed (label reads in fp32), shard by shard; one shard is in memory at a time."""
    for shard, _, places in rows.pieces:
        positions, sites = shard.listed("positions"), shard.listed("label_sites")
        arrays = shard.take_all(_per_row(shard, positions, sites), places)
        held = [] if shard.has(SETS) else streams_of(shard)  # sums over rows have nothing that is one row's own
        values = {stream: {name: _values(shard, stream, name, places) for name in positions} for stream in held}
        resid = values.pop("resid", {})
        ragged = zip(*(shard.ragged(name, places) for name in RAGGED), strict=True)
        given = given_logp_of(shard, places)
        for k, (place, runs) in enumerate(zip(places.tolist(), ragged, strict=True)):
            reads = {site: read_at(arrays, k, at) for at, site in enumerate(sites)}
            yield _record(
                shard.rows[place],
                runs,
                positions={name: int(arrays["positions"][k, at]) for at, name in enumerate(positions)},
                resid={name: found[k] for name, found in resid.items() if k in found},
                labels={site: read for site, read in reads.items() if read is not None},
                given_logp=tuple(given[k].tolist()),
                streams={
                    stream: {name: found[k] for name, found in own.items() if k in found}
                    for stream, own in values.items()
                },
            )


def given_logp_of(shard: Shard, places: np.ndarray) -> list[np.ndarray]:
    """Of each row the log-probability of every given token, fp32; empty where its answer was generated."""
    if not shard.has(GIVEN_LOGP):
        return [np.empty(0, np.float32)] * len(places)
    return shard.ragged(GIVEN_LOGP, places)


def _per_row(shard: Shard, positions: Sequence[str], sites: Sequence[str]) -> list[str]:
    """The tensors that hold one entry per row; the second of a pair must be there where the first is."""
    names = ["positions"] if positions else []
    names += _READS if sites else ()
    return names + [name for pair in _PAIRS if shard.has(pair[0]) for name in pair]


def texts_of(rows: Locations) -> list[str]:
    """The generated text of each row, in the order given."""
    return [_text(run) for run in runs_of(rows, "gen_text")]


def runs_of(rows: Locations, name: str) -> list[np.ndarray]:
    """Of a ragged tensor the run of each row, in the order given."""
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for shard, slots, places in rows.pieces:
        runs = given_logp_of(shard, places) if name == GIVEN_LOGP else shard.ragged(name, places)
        for slot, run in zip(slots.tolist(), runs, strict=True):
            found[slot] = run
    return found


def streams_of(shard: Shard) -> list[str]:
    """The streams that a shard holds beside the residual, which may be absent from all of its rows."""
    found = (ACTIVATIONS.fullmatch(name) for name in shard.header.tensors)
    return ["resid", *sorted({match["stream"] for match in found if match} & set(STREAMS[1:]), key=STREAMS.index)]


def _values(shard: Shard, stream: str, position: str, places: np.ndarray) -> dict[int, np.ndarray]:
    """``[layer, width]`` of a stream by the index in ``places`` of the rows that have the position."""
    entries = shard.entries(position)[places]
    present = np.flatnonzero(entries >= 0)
    if not present.size:
        return {}
    layers = shard.listed("layers") if stream == "resid" else _blocks(shard, stream)
    if not layers:
        raise shard.file.corrupt("it holds residuals and lists no layers")
    names = [tensor_name(stream, position, layer) for layer in layers]
    stacked = np.stack(list(shard.take_all(names, entries[present]).values()), axis=1)
    return dict(zip(present.tolist(), stacked, strict=True))


def _blocks(shard: Shard, stream: str) -> list[int]:
    """The blocks of a stream beside the residual, which rise."""
    found = (ACTIVATIONS.fullmatch(name) for name in shard.header.tensors)
    return sorted({int(match["layer"]) for match in found if match and match["stream"] == stream})


def _record(
    entry: Mapping[str, Any],
    runs: Sequence[np.ndarray],
    *,
    positions: Any,
    resid: Any,
    labels: Any,
    given_logp: Any,
    streams: Any,
) -> CellRecord:
    span = entry.get("span")
    tokens, answer, text = runs
    return CellRecord(
        cell=cell_of(entry),
        prompt_sha=entry["prompt_sha"],
        tokens_sha=entry["tokens_sha"],
        prompt_tokens=tuple(tokens.tolist()),
        positions=positions,
        resid=resid,
        labels=labels,
        gen_tokens=tuple(answer.tolist()),
        gen_text=_text(text),
        status=entry["status"],
        label=entry["label"],
        letter=entry["letter"],
        span=None if span is None else (span[0], span[1]),
        letter_first=entry["letter_first"],
        nonfinite=entry["nonfinite"],
        extra=entry.get("extra", {}),
        given_logp=given_logp,
        streams=streams,
    )


def _text(run: np.ndarray) -> str:
    return run.tobytes().decode("utf-8", "surrogatepass")
