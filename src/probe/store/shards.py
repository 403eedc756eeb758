"""Committed shards as they are read. Knows row tables and checks every byte it returns; never writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from probe.store.checksums import crc32
from probe.store.columns import Columns, Targets
from probe.store.header_checks import fault_of_list, fault_of_row, fault_of_tensor
from probe.store.places import LocalPlace, Place, open_place
from probe.store.shard_format import DTYPES, Header, TensorSpec, as_bytes, header_name
from probe.store.tensor_files import TensorFile
from probe.values import StoreError

FOLDER = "shards"
REQUESTS = 16
"""Requests to a remote store that are under way at once."""

_SUFFIX = ".safetensors"
Key = tuple[str, str]
"""What locates a row: its id, and the hash of the prompt that it was captured with."""


class Headers(Protocol):
    """A copy of the headers of some shards (the index): sizes and row keys by shard name, and where it stands."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each shard that the copy knows."""
        ...

    @property
    def keys(self) -> Mapping[str, tuple[Key, ...]]:
        """What locates the rows of each shard."""
        ...

    @property
    def where(self) -> str:
        """How messages name the copy."""
        ...

    def header(self, name: str) -> bytes:
        """The header of a shard with its padding, empty where it is not known; the caller checks its hash."""
        ...


@dataclass(frozen=True, eq=False)
class Shard:
    """One shard file; nothing is read before it is asked for, and never more than is asked for."""

    file: TensorFile
    identity: str
    index: Headers | None = None
    _entries: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    _specs: dict[str, TensorSpec] = field(default_factory=dict, init=False, repr=False)
    _columns: dict[tuple[str, ...], Columns] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """32 hex digits: the hash of the header."""
        return self.file.name.removeprefix(f"{FOLDER}/").removesuffix(_SUFFIX)

    @property
    def path(self) -> Path:
        """The file on this machine.

        Raises:
            StoreError: the store is remote.
        """
        return local_path(self.file.place) / self.file.name

    def header_text(self) -> bytes:
        """The header's JSON with its padding: from the index where what it holds has this name, else from the file."""
        text = self.index.header(self.name) if self.index else b""
        return text if header_name(text) == self.name else self.file.header_text()

    @cached_property
    def header(self) -> Header:
        """The validated header.

        Raises:
            CorruptShard: the header, the size or the name is not what was committed.
        """
        header = self.file.header(self.header_text())
        if header.name != self.name:
            raise self.file.corrupt(f"its name is not the hash of its header, {header.name}")
        if header.metadata.get("identity_sha256") != self.identity:
            raise self.file.corrupt("it belongs to a store with another manifest")
        return header

    @cached_property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The row table, from the header."""
        rows = self.listed("rows")
        if fault := next(filter(None, map(fault_of_row, rows)), ""):
            raise self.file.corrupt(f"its row table is not one: {fault}")
        return tuple(rows)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """What locates each row, in the order of the row table; from the index where that holds the shard."""
        return self.index.keys[self.name] if self.index else self._own_keys

    @cached_property
    def _own_keys(self) -> tuple[Key, ...]:
        return tuple((row["row_id"], row["prompt_sha"]) for row in self.rows)

    def listed(self, key: str) -> list[Any]:
        """A list in the header's metadata: ``rows``, ``layers``, ``positions``, ``label_sites`` or ``options``."""
        try:
            value = json.loads(self.header.metadata[key])
        except (KeyError, ValueError, RecursionError) as error:
            raise self.file.corrupt(f"its header has no list {key!r}") from error
        if not isinstance(value, list):
            raise self.file.corrupt(f"its header's {key!r} is not a list")
        if fault := fault_of_list(key, value):
            raise self.file.corrupt(fault)
        return value

    def has(self, tensor: str) -> bool:
        """Whether the shard holds a tensor."""
        return tensor in self.header.tensors

    def spec(self, tensor: str) -> TensorSpec:
        """Dtype, shape and bytes of a tensor.

        Raises:
            CorruptShard: the shard has no such tensor, or not of such a dtype and shape.
        """
        if tensor not in self._specs:
            spec = self.header.tensors.get(tensor)
            if spec is None:
                raise self.file.corrupt(f"it has no tensor {tensor!r}")
            if fault := fault_of_tensor(tensor, spec, self._sizes):
                raise self.file.corrupt(fault)
            self._specs[tensor] = spec
        return self._specs[tensor]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        lists = {key: len(self.listed(key)) for key in ("positions", "label_sites", "options")}
        return {"rows": len(self.keys), **lists}

    def take(self, tensor: str, entries: Sequence[int] | np.ndarray) -> np.ndarray:
        """Entries of a tensor along its first axis, in the order asked; each is checked against its crc32.

        Raises:
            CorruptShard: an entry's bytes are not those that were committed.
        """
        return self.take_all([tensor], entries)[tensor]

    def take_all(self, tensors: Iterable[str], entries: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The same entries of several tensors, as ``take``; the file is opened once."""
        names, entries = tuple(tensors), np.asarray(entries, np.int64)
        specs = {tensor: self.spec(tensor) for tensor in names}
        found = {tensor: np.empty((len(entries), *spec.shape[1:]), spec.dtype) for tensor, spec in specs.items()}
        if len(entries) and names:
            self.columns(names).read(entries, Targets.of([*found.values()]))
        return found

    def columns(self, tensors: tuple[str, ...]) -> Columns:
        """Where some tensors and their checksums stand.

        Raises:
            CorruptShard: the shard has no such tensor, or no checksums of it.
            StoreError: the index says other rows than the shard; an array could be of other rows.
        """
        if tensors not in self._columns:
            self._require_keys()
            specs, sums = [*map(self.spec, tensors)], [*map(self._crcs_of, tensors)]
            starts = np.array([spec.start for spec in specs], np.int64)
            widths = np.array([spec.row_bytes for spec in specs], np.int64)
            crcs = np.array([spec.start for spec in sums], np.int64)
            n_crcs = min((spec.shape[0] for spec in sums), default=0)
            kinds = {(spec.dtype, spec.shape[1:]) for spec in specs}
            kind = kinds.pop() if len(kinds) == 1 else None
            self._columns[tensors] = Columns(self.file, tensors, starts, widths, crcs, n_crcs, kind)
        return self._columns[tensors]

    def ragged(self, tensor: str, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The run of each row in a ragged tensor, in the order asked, checked like ``take``."""
        spec, rows = self.spec(tensor), np.asarray(rows, np.int64)
        offsets = self.take(f"{tensor}.offsets", range(len(self.rows) + 1))
        edges = list(zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True))
        if not all(0 <= start <= stop <= spec.shape[0] for start, stop in edges):
            raise self.file.corrupt(f"the offsets of {tensor!r} do not rise")
        runs = [np.empty((stop - start, *spec.shape[1:]), spec.dtype) for start, stop in edges]
        sums, crcs = self._crcs_of(tensor), np.empty(len(self.rows), DTYPES["I64"])
        if len(crcs) > sums.shape[0]:
            raise self.file.corrupt(f"tensor {tensor!r} has {sums.shape[0]} checksums and {len(crcs)} rows")
        spans = [(spec.start + edge[0] * spec.row_bytes, as_bytes(run)) for edge, run in zip(edges, runs, strict=True)]
        self.file.fill([(sums.start, as_bytes(crcs)), *spans])
        for row, run in zip(rows.tolist(), runs, strict=True):
            if crc32(as_bytes(run)) != crcs[row]:
                raise self.file.corrupt(f"tensor {tensor!r} fails its crc32 at entry {row}")
        return runs

    def announce_entries(self, position: str) -> None:
        """Say that ``entries`` of a position is asked soon."""
        if position not in self._entries and self.has(name := f"rows.{position}"):
            self.columns((name,)).announce(np.arange(self.spec(name).shape[0]))

    def entries(self, position: str) -> np.ndarray:
        """For each row the entry that holds it in ``resid.<position>.*``, -1 where the site is absent."""
        if position not in self._entries:
            entry = np.full(len(self.keys), -1, np.int64)
            if self.has(name := f"rows.{position}"):
                present = self.take(name, range(self.spec(name).shape[0]))
                if present.size and (present.min() < 0 or present.max() >= len(entry)):
                    raise self.file.corrupt(f"tensor {name!r} names rows that it does not have")
                entry[present] = np.arange(len(present))
            self._entries[position] = entry
        return self._entries[position]

    def whole(self, tensor: str) -> np.ndarray:
        """A whole tensor, unchecked: for ``verify``, which does the checking."""
        return self.file.tensor(self.spec(tensor))

    def _require_keys(self) -> None:
        """Refuse an index that is wrong about this shard's rows."""
        if self.index and self.keys != self._own_keys:
            raise StoreError(f"{self.index.where} is wrong about {self.file.name}; delete it: it is only a cache")

    def _crcs_of(self, tensor: str) -> TensorSpec:
        """The tensor of another one's checksums."""
        spec = self.spec(f"crc.{tensor}")
        if spec.dtype != DTYPES["I64"] or len(spec.shape) != 1:
            raise self.file.corrupt(f"the checksums of {tensor!r} are no list")
        return spec


class Located(NamedTuple):
    """Where a committed row stands: its shard, and its place in that shard's row table."""

    shard: Shard
    row: int

    @property
    def entry(self) -> Mapping[str, Any]:
        """Its line of the row table."""
        return self.shard.rows[self.row]


def shards_in(place: str | Path | Place, identity: str, index: Headers | None = None) -> tuple[Shard, ...]:
    """The committed shards of a store, by name; the list is the snapshot that a reader keeps."""
    place = open_place(place)
    found = []
    for base, entry in sorted(place.list(FOLDER).items()):
        name = base.removesuffix(_SUFFIX)
        if name != base and _is_name(name):
            fits = index is not None and index.sizes.get(name) == entry.size
            found.append(Shard(TensorFile(place, f"{FOLDER}/{base}", entry), identity, index if fits else None))
    return tuple(found)


def fetch_headers(shards: Sequence[Shard]) -> None:
    """Read the headers of remote shards that no index holds, several at once: each is a round trip.

    Raises:
        CorruptShard: a header is not what was committed.
    """
    asked = [shard for shard in shards if shard.index is None and not isinstance(shard.file.place, LocalPlace)]
    if asked:
        with ThreadPoolExecutor(REQUESTS) as pool:
            for _ in pool.map(lambda shard: shard.header, asked):
                pass


def locate(shards: Sequence[Shard]) -> dict[Key, Located]:
    """Every committed row by its id and the hash of its prompt, so that a row captured anew is another one.

    Where two shards hold the same row, the lowest name wins.
    """
    located: dict[tuple[str, str], Located] = {}
    for shard in shards:
        for row, key in enumerate(shard.keys):
            located.setdefault(key, Located(shard, row))
    return located


def local_path(place: Place) -> Path:
    """The folder of a place on this machine.

    Raises:
        StoreError: the place is remote.
    """
    if not isinstance(place, LocalPlace):
        raise StoreError(f"{place.url} is not on this machine; this needs a store in a local folder")
    return place.path


def _is_name(stem: str) -> bool:
    return len(stem) == 32 and not set(stem) - set("0123456789abcdef")
