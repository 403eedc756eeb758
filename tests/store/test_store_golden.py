"""What version 1 of the format wrote is read for good: the golden store was written once, before the first release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import golden_store
import numpy as np
import pytest

from probe.store import open_store
from probe.values import CorruptShard

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    return json.loads((GOLDEN / "v1.expected.json").read_text("utf-8"))


def test_the_golden_store_of_version_1_reads_as_it_was_written(expected):
    store = open_store(GOLDEN / "v1", warn=False)
    table, view = store.table(), store.select()
    wanted = {row["row_id"]: row for row in expected}
    assert list(table["row_id"]) == [row["row_id"] for row in expected]
    assert list(view.texts()["gen_text"]) == [row["gen_text"] for row in expected]
    assert list(table["y_gen"]) == [row["label"] for row in expected]
    assert list(table["status"]) == [row["status"] for row in expected]
    for site in ("prompt_end", "answer"):
        for layer in range(3):
            resid = view.resid(layer=layer, position=site, missing="drop")
            rows = table["row_id"].iloc[resid.kept]
            assert len(rows) == sum(site in row["resid"] for row in expected)
            np.testing.assert_array_equal(resid.numpy(), [wanted[row]["resid"][site][layer] for row in rows])
        logp = view.label_logp(site, missing="nan")
        here = [slot for slot, row in enumerate(expected) if site in row["logp"]]
        np.testing.assert_array_equal(logp[here], [expected[slot]["logp"][site] for slot in here])
        assert np.isnan(np.delete(logp, here, axis=0)).all()
    for record in view.records():
        row = wanted[record.cell.row_id]
        for site, (ids, variants) in row["variants"].items():
            read = record.labels[site]
            assert [list(some) for some in read.variant_ids] == ids
            assert [list(some) for some in read.variant_logp] == variants
        assert dict(record.positions) == row["positions"]


def test_the_golden_store_keeps_what_was_superseded_failed_and_sealed():
    store = open_store(GOLDEN / "v1", warn=False)
    coverage = store.coverage()
    assert (coverage.planned, coverage.committed, coverage.failed) == (14, 13, 1)
    assert list(store.failures()["kind"]) == ["PromptTooLong"]
    assert len(store.plans()) == 2
    assert sum(len(shard.rows) for shard in store.shards) == 17
    assert store.verify() == []
    tensors, metadata = store.readout()
    assert tensors["unembed.weight"].tolist() == np.arange(24).reshape(3, 8).tolist()
    assert metadata == {"norm.kind": "rms"}


def test_the_same_records_are_written_today_as_the_same_bytes(tmp_path):
    """So what is captured now goes on with a store of before: its identity, its plans and its shards."""
    golden_store.main(tmp_path)
    for folder in ("plan", "shards", "failures"):
        written, kept = (
            {path.name: path.read_bytes() for path in (root / "v1" / folder).iterdir()} for root in (GOLDEN, tmp_path)
        )
        assert kept == written
    for file in ("manifest.json", "readout.safetensors"):
        assert (tmp_path / "v1" / file).read_bytes() == (GOLDEN / "v1" / file).read_bytes()


def test_one_changed_byte_in_a_copy_of_it_is_refused(tmp_path):
    copy = shutil.copytree(GOLDEN / "v1", tmp_path / "v1")
    shard = open_store(copy, warn=False).select().rows[0].located.shard
    with shard.path.open("r+b") as file:
        file.seek(shard.header.tensors["resid.prompt_end.L01"].start)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    damaged = open_store(copy, warn=False)
    assert [problem.tensor for problem in damaged.verify() if problem.tensor] == ["resid.prompt_end.L01"]
    with pytest.raises(CorruptShard):
        damaged.select().resid(layer=1, position="prompt_end").numpy()
    assert damaged.select().resid(layer=0, position="prompt_end").numpy().shape == (13, 8)
