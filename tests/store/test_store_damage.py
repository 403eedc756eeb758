"""A damaged byte is never returned as data, and what is lost is noticed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import store_samples as samples

from probe.store import StoreLock, open_store, open_writer
from probe.values import (
    CorruptShard,
    StoreError,
)


def test_a_flipped_bit_is_detected_wherever_it_falls_and_the_untouched_store_reads(write):
    path, moments = write(), random.Random(2)
    assert open_store(path).verify() == []
    before = read_everything(path)
    silent = []
    for _ in range(60):
        shard = moments.choice(open_store(path).shards).path
        bytes_, place = bytearray(shard.read_bytes()), 0
        place = moments.randrange(len(bytes_)) if moments.random() < 0.7 else moments.randrange(3000)
        bytes_[place] ^= 1 << moments.randrange(8)
        whole = shard.read_bytes()
        shard.write_bytes(bytes_)
        try:
            found = read_everything(path)
        except CorruptShard as error:
            assert shard.name in str(error)
        else:  # what was read is right: the flip fell on what only verify reads, as the checksums of unread tensors
            if found != before or not open_store(path).verify():
                silent.append((shard.name, place))
        shard.write_bytes(whole)
    assert not silent
    assert read_everything(path) == before


def read_everything(path: Path) -> list[bytes]:
    view = open_store(path).select()
    found = [view.table().to_csv().encode(), view.texts().to_csv().encode(), view.label_logp("answer").tobytes()]
    for position in samples.POSITIONS:
        found += [resid.numpy().tobytes() for _, resid in view.iter_layers(position=position)]
    return found


def test_a_flipped_activation_names_its_row_in_verify_and_leaves_the_other_layers_readable(write):
    path = write()
    shard = open_store(path).shards[0]
    spec = shard.header.tensors["resid.answer.L01"]
    with shard.path.open("r+b") as file:
        file.seek(spec.start + 2 * spec.row_bytes)
        file.write(b"\xff")
    view = open_store(path).select()
    with pytest.raises(CorruptShard, match=r"resid.answer.L01.*entry 2"):
        view.resid(layer=1, position="answer").numpy()
    assert view.resid(layer=0, position="answer").numpy().shape == (12, 8)
    (problem,) = open_store(path).verify()
    row = shard.rows[2]
    assert problem.tensor == "resid.answer.L01"
    assert problem.rows == (f"{row['persona']}/{row['case']}",)


@pytest.mark.parametrize("keep", [0, 5, 400, 0.5, -1])
def test_a_truncated_shard_is_refused_and_verify_names_it(write, keep):
    path = write()
    shard = open_store(path).shards[1].path
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CorruptShard, match=shard.name):
        open_store(path).table()
    assert [problem.file for problem in open_store(path).verify()] == [shard.name]


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"__metadata__": {}, "a": {"dtype": "F32", "shape": [1099511627776, 1099511627776], "data_offsets": [0, 8]}}',
        b'{"__metadata__": {}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
        b'{"__metadata__": {}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        b' "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
        b'{"__metadata__": {}, "a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}',
        b'{"__metadata__": {}, "__metadata__": {}}',
        b'{"__metadata__": {"rows": 3}}',
        b'{"__metadata__": {}, "a": NaN}',
        b'{"a": {}}',
        b"\xff\xfe",
    ],
)
def test_a_hostile_header_is_refused(write, header):
    path = write()
    shard = open_store(path).shards[0].path
    shard.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CorruptShard, match=shard.name):
        open_store(path).table()
    shard.write_bytes((2**63).to_bytes(8, "little") + header)
    with pytest.raises(CorruptShard, match="claims"):
        open_store(path).table()


def test_a_lost_shard_shows_in_the_coverage_and_is_pending_again(write):
    path = write()
    assert open_store(path).coverage().pending == 0
    lost = open_store(path).shards[0]
    rows = {row["row_id"] for row in lost.rows}
    lost.path.unlink()
    assert open_store(path).coverage().pending == len(rows) == 4
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(samples.plan())
        assert {row.cell.row_id for row in writer.pending()} == rows
        assert writer.commit([samples.record(row) for row in writer.pending()]) == lost.path.stem


def test_an_edited_plan_or_readout_is_noticed(write):
    path = write()
    with StoreLock.acquire(path) as lock:
        open_writer(path, samples.manifest(), lock=lock).write_readout({"u": np.ones((3, 8), np.float32)}, {})
    assert open_store(path).verify() == []
    readout = bytearray((path / "readout.safetensors").read_bytes())
    readout[-1] ^= 1
    (path / "readout.safetensors").write_bytes(readout)
    (plan,) = (path / "plan").glob("*.jsonl")
    plan.write_text(plan.read_text().replace("nurse sees case 1", "nurse sees case 9"))
    assert [problem.file for problem in open_store(path).verify()] == ["readout.safetensors", f"plan/{plan.name}"]
    with pytest.raises(StoreError, match="damaged"):
        open_store(path).table()
