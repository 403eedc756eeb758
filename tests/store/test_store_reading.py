"""What a reader asks of a cache: rows by any condition, several layers, batches, other names, where rows come from."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import store_samples as samples
from store_processes import run_python

from probe.interop.layers import point_of_hook
from probe.store import Plan, StoreLock, UnknownName, View, open_store, open_writer, seal_store
from probe.values import Cell, Condition, CorruptShard, MissingShard, ProbeError, ProbeWarning, StoreError


def rotated(rotations: tuple[int, ...] = (0, 1, 2)) -> Plan:
    """The sample plan under several rotations and two seeds."""
    plan = samples.plan()
    conditions = [Condition(rotation=rotation, seed=rotation % 2) for rotation in rotations]
    rows = [replace(row, cell=Cell(row.cell.persona, row.cell.case, c)) for c in conditions for row in plan.rows]
    return replace(plan, rows=tuple(replace(row, shard=k // 5) for k, row in enumerate(rows)))


def test_rows_are_selected_by_condition_and_its_numbers_in_the_order_asked(write):
    store = open_store(write(plan=rotated()))
    table = store.table()
    found = store.select(rotation=[2, 0], persona="none").table()
    assert found.rotation.tolist() == [2] * 6 + [0] * 6
    assert set(found.persona) == {"none"}
    assert store.select(seed=1).table().row_id.tolist() == table[table.seed == 1].row_id.tolist()
    assert len(store.select(rotation=np.int64(2))) == len(store.select(rotation=2)) > 0  # as a table gives it
    assert store.select(condition="system/rotation=1/seed=1").table().rotation.unique().tolist() == [1]
    assert len(store.select(wording=0)) == len(table) == 36
    with pytest.raises(UnknownName, match=r"no rotation 3; known: 0, 1, 2"):
        store.select(rotation=3)
    with pytest.raises(UnknownName, match=r"nearest: .*'system/rotation=1/seed=1'"):
        store.select(condition="system/rotation=1")
    assert len(store.select(rotation=1).select(seed=0)) == 0  # each is known, and no row has both


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stack_of_layers_is_what_each_layer_gives_by_itself(write, dtype):
    store = open_store(write(dtype=dtype, absent="case-0002"))
    for view in (store.select(), store.select(case=["case-0003", "case-0001"]), store.select(case="case-0005")):
        for layers in (None, [2, 0], [1]):
            asked = [0, 1, 2] if layers is None else layers
            expected = [view.resid(layer=layer, position="prompt_end").numpy() for layer in asked]
            np.testing.assert_array_equal(view.stack(layers, position="prompt_end"), np.stack(expected, axis=1))
        raw = view.stack(position="prompt_end", dtype=view.resid(layer=0, position="prompt_end").dtype)
        np.testing.assert_array_equal(raw.astype(np.float32), view.stack(position="prompt_end"))
    filled = store.select().stack(position="answer", missing="nan")
    absent = (store.table().case == "case-0002").to_numpy()
    assert np.isnan(filled[absent]).all()
    assert not np.isnan(filled[~absent]).any()
    with pytest.raises(StoreError, match="2 of 12 rows have no 'answer'"):
        store.select().stack(position="answer")
    with pytest.raises(UnknownName, match="layer 3 was not captured; the store holds residual points 0, 1, 2"):
        store.select().stack([0, 3], position="answer")
    with pytest.raises(UnknownName, match="no stream 'attn_out'"):
        store.select().resid(layer=0, position="answer", stream="attn_out")


def test_batches_give_every_row_once_and_the_same_seed_the_same_batches(write):
    view = open_store(write(absent="case-0002")).select()
    whole = view.resid(layer=1, position="prompt_end").numpy()
    batches = list(view.batches(layer=1, position="prompt_end", rows=5))
    assert [len(places) for places, _ in batches] == [5, 5, 2]
    assert sorted(np.concatenate([places for places, _ in batches])) == list(range(12))
    for places, array in batches:
        np.testing.assert_array_equal(array, whole[places])
    again, other, plain = (
        np.concatenate([places for places, _ in view.batches(layer=1, position="prompt_end", rows=5, seed=seed)])
        for seed in (0, 1, None)
    )
    order = np.concatenate([places for places, _ in batches])
    assert again.tolist() == order.tolist() != other.tolist()
    assert plain.tolist() == list(range(12)) != order.tolist()
    kept = np.concatenate([p for p, _ in view.batches(layer=1, position="answer", rows=5, missing="drop")])
    assert sorted(kept) == np.flatnonzero(view.table().case != "case-0002").tolist()
    with pytest.raises(ProbeError, match="rows=0"):
        next(view.batches(layer=1, position="answer", rows=0))


def test_the_activation_cache_has_transformerlens_names_that_mean_the_same_points(write):
    view = open_store(write()).select(persona="nurse")
    cache, n_layers = view.activation_cache(position="answer"), 2
    assert list(cache) == ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    for name in (*cache, "blocks.1.hook_resid_pre"):
        expected = view.resid(layer=point_of_hook(name, n_layers), position="answer").numpy()
        np.testing.assert_array_equal(cache[name], expected)
    np.testing.assert_array_equal(cache["resid_post", 1], cache["blocks.1.hook_resid_post"])
    assert not np.array_equal(cache["resid_post", 1], cache["resid_pre", 1])
    for name in ("blocks.2.hook_resid_post", "blocks.0.hook_mlp_out", ("resid_mid", 0), 3):
        assert name not in cache
        with pytest.raises(KeyError, match=r"blocks\.1\.hook_resid_post"):
            cache[name]
    with pytest.raises(TypeError):
        cache["resid_post", 1] = 0


def test_the_variants_of_each_label_are_read_beside_its_sum(tmp_path):
    plan = samples.plan()
    ids, logp = ((11,), (21, 22), (31, 32)), ((-1.0,), (-2.0, -3.0), (-4.0, -0.5))
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        records = [samples.record(row, answer=k > 0) for k, row in enumerate(plan.rows)]
        reads = [replace(r.labels["prompt_end"], variant_ids=ids, variant_logp=logp) for r in records]
        planted = [replace(r, labels={**r.labels, "prompt_end": n}) for r, n in zip(records, reads, strict=True)]
        writer.commit(planted[:6])
        writer.commit(records[6:])  # a shard without variants
    view = open_store(tmp_path / "s").select()
    found = view.label_variants("prompt_end")
    assert found.ids.shape == found.logp.shape == (12, 3, 2)
    assert found.ids[0].tolist() == [[11, -1], [21, 22], [31, 32]]
    assert found.logp[5, 1].tolist() == [-2.0, -3.0]
    assert np.isnan(found.logp[found.ids < 0]).all()
    assert (found.ids[6:] == -1).all()
    assert (view.label_variants("answer").ids == -1).all()
    with pytest.raises(UnknownName, match="label site"):
        view.label_variants("persona_end")


def test_provenance_names_shard_run_and_what_it_ran_on(tmp_path):
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        first = writer.commit([samples.record(row) for row in plan.rows[:4]])  # before any run was recorded
        runs = []
        for rows, device in ((plan.rows[4:8], "cpu"), (plan.rows[8:], "cuda:0")):
            runs.append(writer.start_run({"device": device, "dtype": "float32", "versions": {"torch": "9"}}))
            writer.commit([samples.record(row) for row in rows], {"batch_size": 4})
            writer.finish_run(0)
    store = open_store(tmp_path / "s")
    told = store.provenance()
    assert told.row_id.tolist() == store.table().row_id.tolist()
    assert told.runs.tolist() == [()] * 4 + [(runs[0],)] * 4 + [(runs[1],)] * 4
    assert told.device.tolist() == [None] * 4 + ["cpu"] * 4 + ["cuda:0"] * 4
    assert told.batch_size.tolist() == [None] * 4 + [4] * 8
    assert told.shard[0] == first
    assert told.time[4] < told.time[8]
    assert not told.imported.any()
    one = plan.rows[9].cell.row_id
    assert store.provenance([one]).device.tolist() == ["cuda:0"]
    assert store.provenance(store.select(case="case-0001")).row_id.tolist() == [
        plan.rows[k].cell.row_id for k in (1, 7)
    ]
    with pytest.raises(UnknownName, match="no row"):
        store.provenance([one[:-1]])


def partial(path, count: int = 8):
    plan = samples.plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.commit([samples.record(row) for row in plan.rows[:count]])
    return path


def test_an_incomplete_store_warns_once_with_counts_and_a_complete_one_does_not(tmp_path, write):
    path = partial(tmp_path / "partial")
    with pytest.warns(ProbeWarning, match="holds 8 of 12 rows") as caught:
        store = open_store(path)
        assert len(store.coverage().pending_rows) == 4
        assert not caught  # coverage says it already
        store.table()
        store.select(persona="nurse").table()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.raises(StoreError, match="holds 8 of 12 rows; run the study again"):
        open_store(path, require_complete=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_store(path, warn=False).select()) == 8
        assert len(open_store(write(), require_complete=True).select()) == 12


def test_a_damaged_shard_is_refused_or_left_out_with_a_warning_that_names_its_rows(write):
    path = write()
    shard = open_store(path).shards[1]
    rows = {row["row_id"] for row in shard.rows}
    shard.path.write_bytes(shard.path.read_bytes()[:-1])
    with pytest.raises(CorruptShard, match=shard.name):
        open_store(path).select()
    first = shard.rows[0]
    with pytest.warns(ProbeWarning, match=f"{shard.name}.*4 planned rows.*{first['persona']}/{first['case']}"):
        store = open_store(path, on_corrupt="skip", warn=False)
    view = store.select()
    assert {*view.table().row_id} | rows == {row.cell.row_id for row in store.plan.rows}
    planned = {row.cell.row_id: row for row in store.plan.rows}
    expected = [samples.record(planned[row_id]).resid["answer"][2] for row_id in view.table().row_id]
    np.testing.assert_array_equal(view.resid(layer=2, position="answer").numpy(), np.stack(expected))
    with pytest.raises(StoreError, match="8 of 12 rows"), pytest.warns(ProbeWarning):
        open_store(path, on_corrupt="skip", require_complete=True)


def test_a_sealed_store_that_lacks_a_shard_is_refused_unless_it_may_be_left_out(write):
    path = write()
    seal_store(path)
    assert len(open_store(path).select()) == 12
    shard = open_store(path).shards[1]
    shard.path.unlink()
    with pytest.raises(MissingShard, match=shard.name):
        open_store(path)
    with pytest.warns(ProbeWarning, match=f"1 shards.*{shard.name}.*4 planned rows"):
        store = open_store(path, on_corrupt="skip", warn=False)
    assert len(store.select()) == 8
    with pytest.warns(ProbeWarning, match=shard.name):
        assert len(store.refresh().select()) == 8


def test_activations_are_read_in_the_dtype_asked_and_an_overflow_is_refused(tmp_path):
    plan = samples.plan(("nurse",), 2)
    huge = np.full((3, 8), 90112, ml_dtypes.bfloat16)  # a massive activation: above float16's 65504
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest("bfloat16"), lock=lock)
        writer.add_plan(plan)
        records = [samples.record(row, dtype="bfloat16") for row in plan.rows]
        writer.commit([records[0], replace(records[1], resid={**records[1].resid, "answer": huge})])
    view = open_store(tmp_path / "s").select()
    resid, small = (view.resid(layer=1, position=position) for position in ("answer", "prompt_end"))
    assert resid.numpy(raw=True).dtype == resid.dtype == ml_dtypes.bfloat16
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        assert resid.numpy(dtype).dtype == dtype
        np.testing.assert_array_equal(resid.numpy(dtype).astype(np.float64), resid.numpy(raw=True).astype(np.float64))
    np.testing.assert_array_equal(small.numpy("float16"), small.numpy().astype(np.float16))
    with pytest.raises(ProbeError, match="overflow float16"):
        resid.numpy("float16")
    with pytest.raises(ProbeError, match="floating-point"):
        resid.numpy("int32")


def test_what_is_not_read_yet_says_its_shape_and_its_rows(write):
    view = open_store(write(dtype="bfloat16")).select(case="case-0001")
    resid = view.resid(layer=1, position="answer")
    assert (resid.shape, resid.nbytes, len(resid)) == ((2, 8), 32, 2)
    assert repr(resid) == "Residuals(resid.answer.L01, 2 x 8, bfloat16, not read)"
    table = view.table()
    for name, values in resid.coords.items():
        assert values.tolist() == table[name].tolist()


def test_residuals_become_a_labelled_array_where_xarray_is_there_and_one_line_says_how_where_not(write, monkeypatch):
    view = open_store(write()).select(persona="nurse")
    resid = view.resid(layer=1, position="answer")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "xarray", None)
        with pytest.raises(ProbeError, match=r'pip install "persona-probe\[export\]"'):
            resid.xarray()
    pytest.importorskip("xarray")
    array = resid.xarray()
    assert array.dims == ("row", "d")
    np.testing.assert_array_equal(array.values, resid.numpy())
    assert array.coords["case"].values.tolist() == view.table().case.tolist()


def test_a_view_of_a_view_and_a_store_offer_the_same_selections(write):
    store = open_store(write())
    twice = store.select(persona="none").select(case=["case-0004", "case-0001"])
    once = store.select(persona="none", case=["case-0004", "case-0001"])
    assert isinstance(twice, View)
    assert twice.table().equals(once.table())
    assert twice.table().case.tolist() == ["case-0004", "case-0001"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux")
def test_a_layer_is_read_without_a_second_copy_in_memory(tmp_path):
    n, d_model = 1024, 8192
    plan = samples.plan(("nurse",), n, per_shard=n // 4)
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest("bfloat16", 1, d_model), lock=lock)
        writer.add_plan(plan)
        plain = [samples.record(row, dtype="bfloat16", layers=1, answer=False) for row in plan.rows]
        wide = np.ones((1, d_model), ml_dtypes.bfloat16)
        for first in range(0, n, n // 4):
            writer.commit([replace(r, resid={"prompt_end": wide}) for r in plain[first : first + n // 4]])
    code = (
        "import re, sys; from pathlib import Path; from probe.store import open_store\n"
        "resid = open_store(sys.argv[1]).select().resid(layer=0, position='prompt_end'); resid.take([0]).numpy()\n"
        "status = Path('/proc/self/status').read_text\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s*(\\d+) kB', status())[1])\n"
        "before = peak(); array = resid.numpy(); print((peak() - before) / array.nbytes)"
    )
    assert 0.8 < float(run_python(code, tmp_path / "s")) <= 1.3
