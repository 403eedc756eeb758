"""Entries that are read together come back as they were committed, however their checksums are fetched."""

from __future__ import annotations

import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import store_samples as samples

from probe.store import Store, columns, open_store, residuals
from probe.store.places import LocalPlace
from probe.store.tensor_files import TensorFile
from probe.values import CorruptShard

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(params=[2**18, 0], ids=["checksums-at-once", "checksums-by-tensor"])
def store(request, write, monkeypatch) -> Store:
    monkeypatch.setattr(columns, "REGION", request.param)
    return open_store(write(dtype="bfloat16", absent="case-0001"))


def planted(store: Store, position: str, missing: float = np.nan) -> np.ndarray:
    """``[rows, layers, d_model]`` as they were recorded; ``missing`` where a row has no such position."""
    made = [
        samples.record(row.planned, dtype="bfloat16", answer=row.planned.cell.case != "case-0001")
        for row in store.select().rows
    ]
    absent = np.full((3, 8), missing, np.float32)
    return np.stack([record.resid.get(position, absent).astype(np.float32) for record in made])


@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_any_rows_in_any_order_are_those_that_were_recorded(store, dtype):
    expected = planted(store, "answer")
    rng = np.random.default_rng(0)
    cases = [f"case-{k:04d}" for k in range(6)]
    for asked in (cases, cases[::-1], cases[3:4], list(rng.permutation(cases)), ["case-0004", "case-0002"]):
        view = store.select(case=[str(name) for name in asked])
        slots = [next(k for k, row in enumerate(store.select().rows) if row is own) for own in view.rows]
        stacked = view.stack([2, 0], position="answer", dtype=dtype, missing="nan")
        np.testing.assert_array_equal(stacked.astype(np.float32), expected[slots][:, [2, 0]])
        layer = view.resid(layer=1, position="answer", missing="nan").numpy(dtype)
        np.testing.assert_array_equal(layer.astype(np.float32), expected[slots][:, 1])


def test_no_layers_and_no_rows_are_empty_arrays_and_no_error(store):
    assert store.select().stack([], position="prompt_end").shape == (12, 0, 8)
    assert store.select(where="n_prompt < 0").stack([0, 1], position="prompt_end").shape == (0, 2, 8)


def test_a_flipped_byte_of_an_entry_or_of_its_checksum_names_tensor_and_entry(store):
    row = store.select(persona="nurse", case="case-0002")
    (found,) = row.rows
    shard, entry = found.located.shard, 1  # case-0001 has no answer: two entries stand before it, less one
    whole = shard.path.read_bytes()
    expected = row.stack(position="answer")
    for tensor, size in (("resid.answer.L01", 16), ("crc.resid.answer.L01", 8)):
        damaged = bytearray(whole)
        damaged[shard.spec(tensor).start + entry * size] ^= 4
        shard.path.write_bytes(damaged)
        with pytest.raises(CorruptShard, match=r"'resid\.answer\.L01' fails its crc32 at entry 1"):
            row.stack(position="answer", dtype=BF16)
        with pytest.raises(CorruptShard, match=r"'resid\.answer\.L01' fails its crc32 at entry 1"):
            store.select(persona="nurse").resid(layer=1, position="answer", missing="drop").numpy()
    shard.path.write_bytes(whole)
    np.testing.assert_array_equal(row.stack(position="answer"), expected)


def test_the_disk_is_told_of_every_shard_before_the_first_is_read(store, monkeypatch):
    expected, told, order = planted(store, "prompt_end")[:, 1], [], []
    real_announce, real_fill = LocalPlace.announce, TensorFile.fill

    def announce(self: LocalPlace, name: str, spans: list[tuple[int, int]]) -> None:
        told.append((name, spans))
        order.append("announce")
        real_announce(self, name, spans)

    def fill(self: TensorFile, spans: list[tuple[int, memoryview]]) -> None:
        order.append("read")
        real_fill(self, spans)

    resid = store.select().resid(layer=1, position="prompt_end")
    monkeypatch.setattr(LocalPlace, "announce", announce)
    monkeypatch.setattr(TensorFile, "fill", fill)
    np.testing.assert_array_equal(resid.numpy(), expected)
    assert order == ["announce"] * 3 + ["read"] * 3
    for shard in store.shards:
        (spans,) = (spans for name, spans in told if name == shard.file.name)
        spec = shard.spec("resid.prompt_end.L01")
        assert (spec.start, spec.stop - spec.start) in spans
    monkeypatch.setattr(residuals, "AHEAD", 1)
    order.clear()
    np.testing.assert_array_equal(resid.numpy(), expected)
    assert order == ["announce", "read"] * 3  # what is ahead of the reading is bounded


def test_an_announcement_of_a_file_that_is_gone_leaves_the_error_to_the_read(tmp_path: Path):
    place = LocalPlace(tmp_path)
    (tmp_path / "x").write_bytes(b"abc")
    file = TensorFile.at(place, "x")
    assert file is not None
    (tmp_path / "x").unlink()
    file.announce([(0, 3)])
    with pytest.raises(FileNotFoundError):
        place.announce("x", [(0, 3)])


@pytest.mark.parametrize("package", ["zlib_ng.zlib_ng", "probe.store.checksums"])
def test_every_crc32_that_may_be_used_gives_the_same_number(package):
    fast = pytest.importorskip(package).crc32
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 64, 8191, 8192, 100_001):
        content = rng.bytes(n)
        assert fast(memoryview(content)) == zlib.crc32(content)
