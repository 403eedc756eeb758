"""A safetensors file at a place, read by byte ranges. Knows sizes and a file that ends early; knows no rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from probe.store.files import Entry
from probe.store.places import LocalPlace, Place
from probe.store.shard_format import MAX_HEADER_BYTES, Header, TensorSpec, as_bytes, damage, parse_header
from probe.values import CorruptShard, StoreError

FIRST_READ = 64 * 1024
"""Bytes that are read at once in the hope that they hold the whole header."""


@dataclass(frozen=True)
class TensorFile:
    """A file as a listing saw it; what is read of it later must still be that file."""

    place: Place
    name: str
    entry: Entry

    @classmethod
    def at(cls, place: Place, name: str) -> TensorFile | None:
        """The file of this name as it stands now; None where there is none."""
        folder, _, base = name.rpartition("/")
        entry = place.list(folder).get(base)
        return None if entry is None else cls(place, name, entry)

    def header_text(self) -> bytes:
        """The header's JSON with its padding, unchecked; a length that the file cannot hold costs no memory.

        Raises:
            CorruptShard: the file cannot hold a header of the length that it claims.
        """
        first = bytearray(min(self.entry.size, FIRST_READ))
        self.fill([(0, memoryview(first))])
        length = int.from_bytes(first[:8], "little")
        if len(first) < 8 or length > min(self.entry.size - 8, MAX_HEADER_BYTES):
            raise self.corrupt(f"its header claims {length} bytes and the file has {self.entry.size}")
        if length <= len(first) - 8:
            return bytes(first[8 : 8 + length])
        text = bytearray(length)
        text[: len(first) - 8] = first[8:]
        self.fill([(len(first), memoryview(text)[len(first) - 8 :])])
        return bytes(text)

    def header(self, text: bytes | None = None) -> Header:
        """The validated header, parsed from ``text`` where that was read before.

        Raises:
            CorruptShard: the file is not a whole safetensors file of the dtypes that a store uses.
        """
        try:
            return parse_header(self.header_text() if text is None else text, self.entry.size)
        except (ValueError, RecursionError) as error:
            raise self.corrupt(str(error)[:200]) from error

    def tensor(self, spec: TensorSpec) -> np.ndarray:
        """A whole tensor, unchecked."""
        array = np.empty(spec.shape, spec.dtype)
        self.fill([(spec.start, as_bytes(array))])
        return array

    def tensors(self, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
        """Whole tensors, unchecked; the file is opened once."""
        arrays = [np.empty(spec.shape, spec.dtype) for spec in specs]
        self.fill([(spec.start, as_bytes(array)) for spec, array in zip(specs, arrays, strict=True)])
        return arrays

    def fill(self, spans: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each buffer from its byte offset; the file is opened once.

        Raises:
            CorruptShard: the file is gone, shorter than it was, or cannot be read.
        """
        try:
            self.place.ranges(self.name, spans, self.entry)
        except EOFError as error:
            raise self.corrupt("it is shorter than when the store was opened") from error
        except FileNotFoundError as error:
            raise StoreError(f"{self.where} is gone since the store was opened; open the store again") from error
        except OSError as error:
            raise self.corrupt(f"it cannot be read ({error.strerror or error})") from error

    def announce(self, spans: Sequence[tuple[int, int]]) -> None:
        """Say that (start, size) are read soon. Remote ranges are asked for at once anyway."""
        if isinstance(self.place, LocalPlace):
            with suppress(OSError):  # the read itself says what is wrong
                self.place.announce(self.name, spans)

    @property
    def where(self) -> str:
        """How messages name the file."""
        return f"{self.place.url}/{self.name}"

    def corrupt(self, found: str) -> CorruptShard:
        """The sentence for this file being damaged."""
        return damage(self.name.rpartition("/")[2], found, self.where)
