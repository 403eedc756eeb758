"""What version 1 of the format wrote of sums is read for good: the golden store was written once, before a release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe.store import open_store
from probe.store.set_reading import added_up
from probe.store.shards import shards_in
from probe.values import CorruptShard
from tests.store import golden_moments

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("mean", "squares", "products", "cubes", "fourths")


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / f"{golden_moments.NAME}.expected.json").read_text("utf-8"))
    return found


def test_the_golden_store_of_sums_reads_as_it_was_reckoned_from_the_rows(expected: list[dict[str, Any]]) -> None:
    store = open_store(GOLDEN / golden_moments.NAME)
    found = added_up(store.select())
    assert not found.left
    rows = found.view.rows
    lines = [(rows[line.first].planned.cell, line) for line in found.lines]
    names = [(cell.persona, cell.condition.wording, line.stratum, line.block) for cell, line in lines]
    assert len(names) == len(expected)
    read = 0
    for told in expected:
        line = names.index((told["persona"], told["wording"], told["stratum"], told["block"]))
        for site in told["sites"]:
            sums = found.at(site["layer"], site["position"], site["stream"])
            assert sums is not None
            at = sums.lines.tolist().index(line)
            assert sorted(rows[place].planned.cell.row_id for place in sums.rows[at]) == sorted(site["rows"])
            assert sums.sums.n[at] == len(site["rows"])
            for kind in KINDS:
                wanted = np.array(site[kind])
                got, near = getattr(sums.sums, kind)[at], 1e-6 * np.abs(wanted).max()
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=near, err_msg=f"{site} {kind}")
            read += 1
    assert read == len(expected) * 6


def test_all_else_of_its_rows_is_there_and_every_byte_is_sound() -> None:
    store = open_store(GOLDEN / golden_moments.NAME)
    plan = golden_moments.plan()
    records = {row.cell.row_id: golden_moments.record(row) for row in plan.rows}
    assert [problem.kind for problem in store.verify()] == ["duplicate"] * 2  # the halves of what is there whole
    assert (store.coverage().planned, store.coverage().committed, len(store.shards)) == (36, 36, 5)
    for read in store.select().records():
        wanted = records[read.cell.row_id]
        assert (read.gen_text, read.label, read.positions) == (wanted.gen_text, wanted.label, wanted.positions)
        assert read.resid == {}
    logp = store.select().label_logp("prompt_end")
    wanted_logp = [records[row_id].labels["prompt_end"].logp for row_id in store.table()["row_id"]]
    np.testing.assert_array_equal(logp, wanted_logp)


def test_what_is_written_today_has_the_same_identity_plan_and_tensors_and_sums_that_differ_in_last_bits_at_most(
    tmp_path: Path,
) -> None:
    """So a store of before goes on. The sums come from products of matrices, whose last bits are the processor's."""
    golden_moments.main(tmp_path)
    for file in ("manifest.json", "plan/latest"):
        assert (tmp_path / golden_moments.NAME / file).read_bytes() == (
            GOLDEN / golden_moments.NAME / file
        ).read_bytes()
    identity = open_store(GOLDEN / golden_moments.NAME).layout.identity
    today, kept = (
        {shard.keys: shard for shard in shards_in(root / golden_moments.NAME, identity)} for root in (tmp_path, GOLDEN)
    )
    assert today.keys() == kept.keys()
    for rows, shard in today.items():
        tensors = set(shard.header.tensors)
        assert tensors == set(kept[rows].header.tensors)
        sums = {name for name in tensors if name.partition(".")[0] in ("mean", "squares", "products", "powers")}
        assert len(sums) == 4 * 2 * 3
        for name in tensors - sums - {f"crc.{name}" for name in sums}:
            np.testing.assert_array_equal(shard.whole(name), kept[rows].whole(name))
        for name in sums:
            left, right = shard.whole(name), kept[rows].whole(name)
            np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6 * np.abs(right).max())


def test_one_changed_byte_of_a_sum_in_a_copy_of_it_is_refused(tmp_path: Path) -> None:
    copy = shutil.copytree(GOLDEN / golden_moments.NAME, tmp_path / "copy")
    shard = next(shard for shard in open_store(copy).shards if len(shard.keys) == 12)
    with shard.path.open("r+b") as file:
        file.seek(shard.header.tensors["powers.resid.prompt_end.L01"].start)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    damaged = open_store(copy)
    assert [problem.tensor for problem in damaged.verify() if problem.kind != "duplicate"] == [
        "powers.resid.prompt_end.L01"
    ]
    with pytest.raises(CorruptShard):
        added_up(damaged.select()).at(1, "prompt_end")
    assert added_up(damaged.select()).at(0, "prompt_end") is not None
