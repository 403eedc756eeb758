"""A copy of every shard's header in one Parquet file, so that many shards open fast. Knows how to distrust it.

The index is only a cache: it can be deleted, and is made again from the shards. A line of it counts for a shard of the
same name and size, and a header from it only where its hash is that name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from probe.store.places import Place, open_place
from probe.store.shards import Key, Shard, shards_in
from probe.values import CorruptShard, StoreError, canonical_json

FILE = "index.parquet"
SCHEMA = "persona-acts-index/1"
WORTH = 32
"""Shards from which an index is written: fewer headers are read sooner than Parquet is imported."""

_KEYS = ("name", "size", "row_ids", "prompt_shas")


@dataclass(frozen=True, eq=False)
class Index:
    """Size and row keys of each shard by its name; headers are unpacked when the first is asked for."""

    sizes: Mapping[str, int]
    keys: Mapping[str, tuple[Key, ...]]
    content: bytes
    where: str

    def header(self, name: str) -> bytes:
        """The header of a shard as it stood in its file, with its padding; the caller checks its hash."""
        return self._headers.get(name, b"")

    @cached_property
    def _headers(self) -> dict[str, bytes]:
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(io.BytesIO(self.content), columns=["header"], page_checksum_verification=True)
            return dict(zip(self.sizes, table.column("header").to_pylist(), strict=True))
        except (ValueError, OSError, KeyError):  # damaged: no header is known, and the shards' own are read
            return {}


def read_index(path: str | Path | Place) -> Index | None:
    """The index of a store; None where there is none, or a damaged one, or one of another version."""
    import pyarrow.parquet as pq

    place = open_place(path)
    try:
        content = place.read(FILE)
        table = pq.read_table(io.BytesIO(content), columns=list(_KEYS), page_checksum_verification=True)
        lines = [table.column(key).to_pylist() for key in _KEYS]
        marks = table.schema.metadata
        if marks[b"schema"].decode() != SCHEMA or marks[b"keys_sha256"].decode() != _digest(lines):
            return None
    except (ValueError, OSError, KeyError, TypeError):
        return None
    names, sizes, row_ids, prompt_shas = lines
    keys = {name: tuple(zip(*of, strict=True)) for name, *of in zip(names, row_ids, prompt_shas, strict=True)}
    return Index(dict(zip(names, sizes, strict=True)), keys, content, f"{place.url}/{FILE}")


def write_index(path: str | Path | Place, identity: str) -> bool:
    """Write the index of a store as it stands; whether there is one now.

    A small store needs none, and a full disk, or a service that refuses, costs no more than this cache.
    """
    place = open_place(path)
    shards = shards_in(place, identity)
    if len(shards) < WORTH:
        return False
    with suppress(OSError, StoreError):
        place.write(FILE, [encode_index(shards)])
        return True
    return False


def encode_index(shards: Iterable[Shard]) -> bytes:
    """The index of these shards as the bytes of a Parquet file, one line per shard; damaged shards have none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sound = []
    for shard in shards:
        with suppress(CorruptShard):
            sound.append((shard, shard.keys, shard.header_text()))
    lines: list[list[Any]] = [
        [shard.name for shard, _, _ in sound],
        [shard.file.entry.size for shard, _, _ in sound],
        [[row_id for row_id, _ in keys] for _, keys, _ in sound],
        [[prompt_sha for _, prompt_sha in keys] for _, keys, _ in sound],
    ]
    kinds = (pa.string(), pa.int64(), pa.list_(pa.string()), pa.list_(pa.string()))
    columns = {key: pa.array(line, kind) for key, line, kind in zip(_KEYS, lines, kinds, strict=True)}
    columns["header"] = pa.array([text for _, _, text in sound], pa.large_binary())
    marks = {
        "schema": SCHEMA,
        "shard_set": shard_set((shard.name, shard.file.entry.size) for shard, _, _ in sound),
        "keys_sha256": _digest(lines),
    }
    out = io.BytesIO()
    table = pa.table(columns).replace_schema_metadata(marks)
    pq.write_table(table, out, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return out.getvalue()


def shard_set(shards: Iterable[tuple[str, int]]) -> str:
    """Hex sha256 of which shards there are, from their names and sizes in any order."""
    return hashlib.sha256(canonical_json(sorted(shards)).encode()).hexdigest()


def _digest(lines: Sequence[Sequence[Any]]) -> str:
    return hashlib.sha256(canonical_json(lines).encode()).hexdigest()
