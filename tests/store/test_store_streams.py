"""Streams beside the residual: kept, read, exported and checked like it; stores without them stay what they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from store_samples import manifest, plan, record

from probe.store import StoreLock, UnknownName, open_store, open_writer
from probe.store.manifests import layout_of
from probe.store.packing import pack
from probe.store.verify import verify
from probe.values import CellRecord, CorruptShard, ProbeError, StoreError, StoreMismatch

BLOCKS = {"attn_out": [0, 1], "head_out": [1]}
WIDTHS = {"attn_out": 8, "head_out": 12}


def with_streams(streams: Any = None) -> dict[str, Any]:
    own = {name: {"layers": BLOCKS[name], "width": WIDTHS[name]} for name in BLOCKS} if streams is None else streams
    plain = manifest()
    return plain | {"capture": plain["capture"] | {"streams": own}}


def full(plain: CellRecord) -> CellRecord:
    """The record with streams whose values tell stream, position, block and row apart."""
    rng = np.random.default_rng(int(plain.cell.row_id, 16) + 1)
    streams = {
        name: {at: rng.normal(size=(len(BLOCKS[name]), WIDTHS[name])).astype(np.float32) for at in plain.resid}
        for name in BLOCKS
    }
    return replace(plain, streams=streams)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[CellRecord]]:
    asked = plan()
    records = [full(record(row, answer=k % 3 > 0)) for k, row in enumerate(asked.rows)]
    with StoreLock.acquire(tmp_path / "store") as lock:
        writer = open_writer(tmp_path / "store", with_streams(), lock=lock)
        writer.add_plan(asked)
        for start in range(0, len(records), 4):
            writer.commit(records[start : start + 4])
    return tmp_path / "store", records


def test_every_stream_comes_back_as_it_was_saved(saved: tuple[Path, list[CellRecord]]) -> None:
    store = open_store(saved[0])
    by_id = {one.cell.row_id: one for one in saved[1]}
    found = list(store.select().records())
    assert len(found) == len(by_id)
    for one in found:
        kept = by_id[one.cell.row_id]
        assert one.streams.keys() == kept.streams.keys()
        for name in BLOCKS:
            assert one.streams[name].keys() == kept.streams[name].keys() == one.resid.keys()
            for at, values in kept.streams[name].items():
                np.testing.assert_array_equal(one.at(name)[at], values)


def test_records_that_were_read_pack_into_the_very_shard_that_they_came_from(
    saved: tuple[Path, list[CellRecord]],
) -> None:
    """So `compact` can write such shards again."""
    store = open_store(saved[0])
    records = {one.cell.row_id: one for one in store.select().records()}
    for shard in store.shards:
        assert pack([records[row["row_id"]] for row in shard.rows], store.layout).name == shard.name


def test_a_view_reads_each_stream_by_block_in_the_order_of_its_rows(saved: tuple[Path, list[CellRecord]]) -> None:
    by_id = {one.cell.row_id: one for one in saved[1]}
    view = open_store(saved[0]).select(persona=["none", "nurse"])
    assert view.streams == ("resid", "attn_out", "head_out")
    assert [layer for layer, _ in view.iter_layers(position="prompt_end", stream="attn_out")] == [0, 1]
    for name, blocks in BLOCKS.items():
        for k, block in enumerate(blocks):
            got = view.resid(stream=name, layer=block, position="answer", missing="drop")
            assert got.shape[1] == WIDTHS[name]
            ids = view.table()["row_id"].iloc[got.kept]
            np.testing.assert_array_equal(got, np.stack([by_id[i].streams[name]["answer"][k] for i in ids]))
    stacked = view.stack(position="prompt_end", stream="attn_out")
    assert stacked.shape == (len(view), 2, 8)
    cache = view.activation_cache(position="prompt_end")
    np.testing.assert_array_equal(cache["blocks.1.hook_attn_out"], stacked[:, 1])
    assert len(cache) == 3 + 2
    with pytest.raises(UnknownName, match="block"):
        view.resid(stream="head_out", layer=0, position="prompt_end")
    with pytest.raises(UnknownName, match="no stream 'attn_ou'; nearest: 'attn_out'"):
        view.resid(stream="attn_ou", layer=0, position="prompt_end")


def test_exports_hold_every_stream(saved: tuple[Path, list[CellRecord]], tmp_path: Path) -> None:
    view = open_store(saved[0]).select()
    folder = view.export("numpy", tmp_path / "arrays")
    expected = view.resid(stream="head_out", layer=1, position="prompt_end").numpy()
    np.testing.assert_array_equal(np.load(folder / "head_out.prompt_end.L01.npy"), expected)
    facts = json.loads((folder / "export.json").read_text())
    assert facts["streams"] == {name: {"blocks": BLOCKS[name], "width": WIDTHS[name]} for name in BLOCKS}
    table = pq.read_table(view.export("parquet", tmp_path / "rows.parquet")).to_pandas()
    np.testing.assert_array_equal(np.stack(table["head_out.prompt_end.L01"]), expected)
    assert {"attn_out.answer.L00", "attn_out.answer.L01", "head_out.answer.L01"} <= set(table)
    some = view.export("parquet", tmp_path / "some.parquet", layers=[0], positions=["answer"])
    assert [name for name in pq.read_schema(some).names if ".L" in name] == ["resid.answer.L00", "attn_out.answer.L00"]
    xarray = pytest.importorskip("xarray")
    opened = xarray.open_zarr(view.export("zarr", tmp_path / "z.zarr"), consolidated=False, chunks=None)
    got = opened["head_out_prompt_end"].sel(head_out_block=1)
    assert got.dims == ("row", "head_out_width")
    np.testing.assert_array_equal(got, expected)
    assert isinstance(table, pd.DataFrame)


def test_a_flipped_byte_of_a_stream_is_refused_and_names_its_row(saved: tuple[Path, list[CellRecord]]) -> None:
    store = open_store(saved[0])
    shard = store.select().locations.pieces[0].shard
    assert not verify(saved[0], shard.identity, [shard])
    spec = shard.spec("head_out.prompt_end.L01")
    with shard.path.open("r+b") as file:
        file.seek(spec.start + spec.row_bytes)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    damaged = open_store(saved[0]).select()
    with pytest.raises(CorruptShard, match=r"head_out\.prompt_end\.L01"):
        damaged.resid(stream="head_out", layer=1, position="prompt_end").numpy()
    fresh = damaged.locations.pieces[0].shard
    problems = verify(saved[0], fresh.identity, [fresh])
    assert [problem.tensor for problem in problems] == ["head_out.prompt_end.L01"]
    assert len(problems[0].rows) == 1


def test_a_store_without_other_streams_has_the_bytes_and_the_identity_that_it_had() -> None:
    layout = layout_of(manifest())
    encoded = pack([record(plan().rows[0])], layout)
    named = manifest() | {"capture": {"stream": "resid", **manifest()["capture"]}}
    assert layout.inner == ()
    assert b"attn_out" not in b"".join(bytes(part) for part in encoded.parts)
    assert layout_of(with_streams()).identity != layout.identity != layout_of(named).identity


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda one: replace(one, streams={"attn_out": one.streams["attn_out"]}),
            "head_out has the positions of resid",
        ),
        (
            lambda one: replace(one, streams={**one.streams, "mlp_out": one.streams["attn_out"]}),
            "capture.streams has no 'mlp_out'; it has resid, attn_out, head_out",
        ),
        (
            lambda one: replace(one, streams={**one.streams, "attn_out": one.streams["head_out"]}),
            r"attn_out at 'prompt_end' has the shape \[2, 8\] of the manifest; found \[1, 12\]",
        ),
        (
            lambda one: replace(
                one,
                streams={
                    **one.streams,
                    "head_out": {at: values / 0 for at, values in one.streams["head_out"].items()},
                },
            ),
            "head_out at 'prompt_end' is not finite at layer 1",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_record_whose_streams_do_not_fit_is_refused(change: Any, found: str) -> None:
    one = full(record(plan().rows[0]))
    assert pack([one], layout_of(with_streams()))
    with pytest.raises(ProbeError, match=found):
        pack([change(one)], layout_of(with_streams()))


@pytest.mark.parametrize(
    "streams",
    [
        [],
        {"resid": {"layers": [0], "width": 8}},
        {"attn_out": {"layers": [1, 0], "width": 8}},
        {"attn_out": {"layers": [], "width": 8}},
        {"attn_out": {"layers": [0]}},
        {"attn_out": [0]},
    ],
)
def test_a_manifest_with_other_streams_than_there_are_is_refused(streams: Any) -> None:
    with pytest.raises(StoreError, match=r"capture\.streams"):
        layout_of(with_streams(streams))


def test_a_run_that_asks_for_other_streams_is_another_store(saved: tuple[Path, list[CellRecord]]) -> None:
    with StoreLock.acquire(saved[0]) as lock, pytest.raises(StoreMismatch, match=r"captured with capture\.streams"):
        open_writer(saved[0], manifest(), lock=lock)
