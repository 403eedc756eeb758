"""Given texts and further answer sites on disk: they come back as they were, and a flipped byte of them is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import store_samples as samples

from probe.store import Plan, Store, StoreLock, open_store, open_writer
from probe.store.manifests import layout_of
from probe.store.packing import pack
from probe.values import CellRecord, CorruptShard, LabelRead, ProbeError

LAYOUT = layout_of(samples.manifest())


def crossed() -> Plan:
    """Two personas, each with its own answer to three cases and with two given ones."""
    plan = samples.plan(("nurse", "none"), 3)
    rows = list(plan.rows)
    for source in ("expert", "nurse"):
        for row in plan.rows:
            cell = replace(row.cell, condition=replace(row.cell.condition, given=source))
            rows.append(replace(row, cell=cell, prompt_sha=f"{source}{row.prompt_sha}"[:64], shard=1))
    return replace(plan, rows=tuple(rows))


def recorded(plan: Plan) -> list[CellRecord]:
    return [with_given(samples.record(row)) if row.cell.condition.given else samples.record(row) for row in plan.rows]


def with_given(record: CellRecord) -> CellRecord:
    rng = np.random.default_rng(int(record.cell.row_id[:8], 16))
    logp = tuple(float(value) for value in -rng.random(len(record.gen_tokens)).astype(np.float32))
    forced = LabelRead(np.log(np.full(3, 0.25, np.float32)), 0.75, 1.0)
    return replace(
        record,
        given_logp=logp,
        extra={"given_logp": sum(logp), "stop": "given"},
        labels={**record.labels, "forced": forced},
        positions={**record.positions, "forced": record.positions["prompt_end"] + 3},
        resid={**record.resid, "forced": record.resid["prompt_end"]},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path, plan = tmp_path_factory.mktemp("given") / "s", crossed()
    records = recorded(plan)
    manifest = samples.manifest()
    manifest["capture"]["positions"].append("forced")
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, manifest, lock=lock)
        writer.add_plan(plan)
        writer.commit(records[:7])  # one given row among generated ones
        writer.commit(records[7:])
    return open_store(path)


def test_given_rows_come_back_as_they_were_and_generated_ones_have_none(store: Store) -> None:
    saved = {record.cell.row_id: record for record in recorded(crossed())}
    found = list(store.select().records())
    assert len(found) == len(saved) == 18
    for record in found:
        want = saved[record.cell.row_id]
        assert record.cell == want.cell
        assert record.given_logp == want.given_logp
        assert bool(record.given_logp) is bool(record.cell.condition.given)
        assert set(record.labels) == set(want.labels)
        assert record.positions["forced"] == want.positions.get("forced", -1)


def test_the_table_tells_given_rows_and_their_sums(store: Store) -> None:
    table = store.table()
    assert list(table["given"].unique()) == ["", "expert", "nurse"]
    assert table["given_logp"].notna().tolist() == (table["given"] != "").tolist()
    view = store.select(given="expert", persona="nurse")
    sums = [float(np.sum(run, dtype=np.float64)) for run in view.given_logp()]
    np.testing.assert_allclose(view.table()["given_logp"], sums, atol=1e-6)
    assert [len(run) for run in view.given_logp()] == view.table()["n_gen"].tolist()
    assert all(len(run) == 0 for run in store.select(given="").given_logp())
    assert [run.tolist() for run in view.gen_tokens()] == [list(record.gen_tokens) for record in view.records()]
    with pytest.raises(ProbeError, match="nurs"):
        store.select(given="nurs")


def test_further_answer_sites_have_columns_in_their_full_name(store: Store) -> None:
    table = store.table()
    given = table["given"] != ""
    np.testing.assert_allclose(table.loc[given, "forced_logp_clinic"], np.log(0.25), rtol=1e-6)
    assert (table.loc[given, "forced_label_mass"] == 0.75).all()
    assert table.loc[~given, ["forced_logp_home", "forced_label_mass"]].isna().all(axis=None)
    assert store.select(given="nurse").label_logp(site="forced").shape == (6, 3)
    assert store.select(given="nurse").resid(layer=1, position="forced").shape == (6, 8)


def test_a_flipped_bit_of_a_given_log_probability_is_found_and_the_untouched_store_is_sound(
    store: Store, tmp_path: Path
) -> None:
    assert store.verify() == []
    shard = next(shard for shard in store.shards if shard.has("given_logp"))
    spec = shard.spec("given_logp")
    content = bytearray(shard.path.read_bytes())
    content[spec.start + 2] ^= 1
    copy = tmp_path / "s"
    copied(store.path, copy)
    (copy / "shards" / shard.path.name).write_bytes(content)
    damaged = open_store(copy)
    assert [problem.tensor for problem in damaged.verify("crc")] == ["given_logp"]
    with pytest.raises(CorruptShard, match="given_logp"):
        damaged.select(given=["expert", "nurse"]).given_logp()


def copied(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            out = target / file.relative_to(source)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(file.read_bytes())


def test_a_shard_without_given_texts_is_byte_for_byte_what_it_was() -> None:
    def tensors(records: Sequence[CellRecord]) -> bytes:
        return bytes(pack(records, LAYOUT).parts[1])

    plan = samples.plan()
    assert b"given" not in tensors([samples.record(row) for row in plan.rows])
    assert b"given_logp" in tensors(recorded(crossed()))


def test_given_log_probabilities_that_do_not_fit_their_tokens_are_refused() -> None:
    row = crossed().rows[-1]
    record = with_given(samples.record(row))
    with pytest.raises(ProbeError, match="one log-probability for each of its"):
        pack([replace(record, given_logp=(*record.given_logp, -1.0))], LAYOUT)
    with pytest.raises(ProbeError, match="given text are not finite"):
        pack([replace(record, given_logp=(float("nan"),) * len(record.gen_tokens))], LAYOUT)
    assert pack([record], LAYOUT).name
