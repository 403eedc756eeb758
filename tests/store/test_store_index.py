"""The index makes opening fast and never changes what is read: fresh, stale, damaged, foreign or forged."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_samples as samples

from probe.store import StoreLock, open_store, open_writer
from probe.store import index as indexes
from probe.store.tensor_files import TensorFile
from probe.values import CorruptShard, StoreError, canonical_json


@pytest.fixture
def indexed(write, monkeypatch):
    """A store of three shards with an index."""
    path = write()
    monkeypatch.setattr(indexes, "WORTH", 1)
    assert indexes.write_index(path, open_store(path).layout.identity)
    return path


def content(path: Path, *, index: bool = True) -> list[bytes]:
    view = open_store(path, index=index).select()
    table = view.table().to_csv().encode()
    return [table, *(resid.numpy().tobytes() for _, resid in view.iter_layers(position="answer"))]


def refuse_headers(self: TensorFile) -> bytes:
    raise AssertionError(f"{self.where} was asked for its header")


def test_with_a_fresh_index_no_shard_is_asked_for_its_header_and_what_is_read_is_equal(indexed, monkeypatch):
    expected = content(indexed, index=False)
    with monkeypatch.context() as patch:
        patch.setattr(TensorFile, "header_text", refuse_headers)
        assert content(indexed) == expected
        with pytest.raises(AssertionError, match="asked for its header"):
            content(indexed, index=False)


def test_an_index_that_is_stale_still_serves_the_shards_that_it_knows(indexed):
    plan = samples.plan(("nurse", "none", "new"))
    with StoreLock.acquire(indexed) as lock:
        writer = open_writer(indexed, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.commit([samples.record(row) for row in plan.rows[12:]])
    known = indexes.read_index(indexed)
    assert known is not None
    assert len(known.sizes) == 3
    assert len(open_store(indexed).table()) == 18
    assert content(indexed) == content(indexed, index=False)


@pytest.mark.parametrize("kept", [0, 4, 0.5, -1])
def test_an_index_cut_short_is_ignored(indexed, kept):
    expected, file = content(indexed), indexed / indexes.FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    assert indexes.read_index(indexed) is None
    assert content(indexed) == expected


def test_a_flipped_bit_anywhere_in_the_index_changes_nothing_that_is_read(indexed):
    expected, file, moments = content(indexed), indexed / indexes.FILE, random.Random(0)
    whole = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[moments.randrange(len(whole))] ^= 1 << moments.randrange(8)
        file.write_bytes(damaged)
        assert content(indexed) == expected


def test_the_index_of_another_store_is_of_no_use_and_does_no_harm(indexed, write):
    other = write("other", dtype="bfloat16")
    expected = content(other)
    shutil.copy(indexed / indexes.FILE, other / indexes.FILE)
    assert content(other) == expected


def forged(path: Path, change) -> None:
    """Rewrite the index with other columns and a right digest, as nobody does by accident."""
    table = pq.read_table(io.BytesIO((path / indexes.FILE).read_bytes()))
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    change(columns)
    keys = [columns[name] for name in ("name", "size", "row_ids", "prompt_shas")]
    marks = table.schema.metadata | {b"keys_sha256": hashlib.sha256(canonical_json(keys).encode()).hexdigest().encode()}
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=table.schema).replace_schema_metadata(marks), out)
    (path / indexes.FILE).write_bytes(out.getvalue())


def test_an_index_that_lies_about_rows_is_refused_before_an_array_is_given(indexed):
    def swap(columns):
        for key in ("row_ids", "prompt_shas"):
            columns[key][0].reverse()

    expected = content(indexed)
    forged(indexed, lambda columns: None)
    assert content(indexed) == expected  # the forging itself does no harm
    forged(indexed, swap)
    with pytest.raises(StoreError, match=r"index\.parquet is wrong about shards/.* delete it"):
        open_store(indexed).select().resid(layer=0, position="answer").numpy()
    assert content(indexed, index=False) == expected


def test_a_header_that_is_not_what_the_name_says_is_read_from_the_shard_instead(indexed):
    def swap(columns):
        columns["header"].reverse()

    expected = content(indexed)
    forged(indexed, swap)
    assert content(indexed) == expected


def test_a_damaged_shard_is_refused_with_an_index_too_and_has_no_line_in_the_next_one(indexed):
    shard = open_store(indexed).shards[0]
    whole = bytearray(shard.path.read_bytes())
    whole[shard.header.tensors["resid.answer.L01"].start] ^= 1
    shard.path.write_bytes(whole)
    with pytest.raises(CorruptShard, match=r"resid\.answer\.L01"):
        content(indexed)
    shard.path.write_bytes(whole[:-1])
    with pytest.raises(CorruptShard, match="size"):
        content(indexed)
    assert indexes.write_index(indexed, shard.identity)
    known = indexes.read_index(indexed)
    assert known is not None
    assert shard.name not in known.sizes
    assert len(known.sizes) == 2


def test_verify_reads_the_headers_of_the_shards_themselves(indexed):
    shard = open_store(indexed).shards[0]
    whole = bytearray(shard.path.read_bytes())
    whole[20] ^= 1
    shard.path.write_bytes(whole)
    assert [problem.file for problem in open_store(indexed).verify() if shard.name in problem.file]


def test_a_small_store_gets_no_index_and_a_full_disk_costs_only_the_index(write, monkeypatch):
    path = write()
    identity = open_store(path).layout.identity
    assert not indexes.write_index(path, identity)
    assert not (path / indexes.FILE).exists()
    monkeypatch.setattr(indexes, "WORTH", 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("probe.store.places.LocalPlace.write", full)
        assert not indexes.write_index(path, identity)
    assert indexes.write_index(path, identity)


def test_the_shard_set_hash_tells_sets_of_shards_apart_in_any_order():
    shards = [("a" * 32, 10), ("b" * 32, 20)]
    assert indexes.shard_set(shards) == indexes.shard_set(reversed(shards))
    assert indexes.shard_set(shards) != indexes.shard_set([("a" * 32, 20), ("b" * 32, 10)])
    assert indexes.shard_set(shards) != indexes.shard_set(shards[:1])


def test_a_row_is_read_as_the_latest_plan_asks_for_it_also_from_the_index(indexed):
    plan = samples.plan()
    edited = replace(plan, rows=(replace(plan.rows[0], prompt_sha="0" * 64), *plan.rows[1:]))
    (indexed / "plan" / f"{edited.hash}.jsonl").write_bytes(edited.file)
    (indexed / "plan" / "latest").write_text(edited.hash)
    for index in (True, False):
        store = open_store(indexed, index=index, warn=False)
        assert store.table().row_id.tolist() == [row.cell.row_id for row in plan.rows[1:]]
        assert store.coverage().superseded == 1
        np.testing.assert_array_equal(
            store.select(persona="nurse").resid(layer=0, position="answer").numpy()[0],
            samples.record(plan.rows[1]).resid["answer"][0],
        )
