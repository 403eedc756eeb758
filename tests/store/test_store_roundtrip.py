"""What is loaded is what was saved, to the bit, by this reader and by others."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import store_samples as samples
from safetensors import safe_open
from safetensors.numpy import load_file

from probe.store import StoreLock, open_store, open_writer
from probe.values import CellRecord, ProbeError

FORMAT = Path(__file__).parents[2] / "docs" / "FORMAT.md"


def assert_same(found: CellRecord, saved: CellRecord) -> None:
    plain = ("cell", "prompt_sha", "tokens_sha", "prompt_tokens", "gen_tokens", "gen_text", "status", "label", "letter")
    for name in (*plain, "span", "letter_first", "nonfinite", "extra"):
        assert getattr(found, name) == getattr(saved, name), name
    assert dict(found.positions) == dict(saved.positions)
    assert found.resid.keys() == saved.resid.keys()
    for position, resid in saved.resid.items():
        assert found.resid[position].dtype == resid.dtype
        assert found.resid[position].tobytes() == resid.tobytes()
    assert found.labels.keys() == saved.labels.keys()
    for site, read in saved.labels.items():
        assert found.labels[site].logp.tobytes() == read.logp.tobytes()
        assert (found.labels[site].mass, found.labels[site].entropy) == (read.mass, read.entropy)
        assert (found.labels[site].top_ids, found.labels[site].top_logp) == (read.top_ids, read.top_logp)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_record_is_loaded_as_it_was_saved_also_without_an_answer_site(write, dtype):
    store = open_store(write(dtype=dtype, absent="case-0002"))
    planned = {row.cell: row for row in store.plan.rows}
    found = list(store.select().records())
    assert {record.cell for record in found} == set(planned)
    for record in found:
        answer = record.cell.case != "case-0002"
        assert_same(record, samples.record(planned[record.cell], dtype=dtype, answer=answer))
    with pytest.raises(AssertionError):  # the comparison itself can tell two rows apart
        assert_same(found[0], found[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_residuals_follow_the_rows_of_the_table_in_any_order_asked(write, dtype):
    store = open_store(write(dtype=dtype))
    planned = {row.cell.row_id: row for row in store.plan.rows}
    cases = ["case-0004", "case-0000", "case-0003"]
    view = store.select(case=cases, persona=["none", "nurse"])
    assert view.table().persona.tolist() == ["none"] * 3 + ["nurse"] * 3
    assert view.table().case.tolist() == cases * 2
    for layer, resid in view.iter_layers(position="answer"):
        expected = [samples.record(planned[row], dtype=dtype).resid["answer"][layer] for row in view.table().row_id]
        assert resid.shape == (6, 8)
        assert resid.nbytes == np.stack(expected).nbytes
        np.testing.assert_array_equal(resid.numpy(resid.dtype), np.stack(expected))
        np.testing.assert_array_equal(np.asarray(resid), np.stack(expected).astype(np.float32))
        assert np.asarray(resid).dtype == np.float32


def test_an_absent_site_is_refused_dropped_or_filled_as_asked(write):
    store = open_store(write(absent="case-0002"))
    view = store.select(persona="nurse")
    with pytest.raises(ProbeError, match=r"1 of 6 rows have no 'answer' \(first: nurse/case-0002\)"):
        view.resid(layer=1, position="answer")
    with pytest.raises(ProbeError, match="nan"):
        view.label_logp("answer")
    dropped = view.resid(layer=1, position="answer", missing="drop")
    filled = view.resid(layer=1, position="answer", missing="nan").numpy()
    assert dropped.kept.tolist() == [0, 1, 3, 4, 5]
    assert np.isnan(filled[2]).all()
    np.testing.assert_array_equal(filled[dropped.kept], dropped.numpy())
    assert np.isnan(view.label_logp("answer", missing="nan")).all(axis=1).tolist() == [False, False, True] + [False] * 3
    assert not np.isnan(view.resid(layer=1, position="prompt_end").numpy()).any()


def test_an_absent_position_takes_no_bytes(write):
    store = open_store(write(plan=samples.plan(("nurse",), 2), absent="case-0001"))
    (shard,) = store.shards
    assert shard.header.tensors["resid.answer.L00"].shape == (1, 8)
    assert shard.header.tensors["resid.prompt_end.L00"].shape == (2, 8)


def test_the_safetensors_library_reads_the_same_bytes(write):
    for dtype in ("float32", "bfloat16"):
        store = open_store(write(dtype, dtype=dtype))
        for shard in store.shards:
            for name, array in load_file(shard.path).items():
                assert array.tobytes() == shard.whole(name).tobytes()
            with safe_open(shard.path, framework="numpy") as opened:
                kinds = {opened.get_tensor(f"resid.answer.L0{layer}").dtype for layer in range(3)}
            assert kinds == {np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype("f4")}


def test_the_reader_printed_in_the_format_page_reads_every_row(write):
    (block,) = re.findall(r"```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), flags=re.DOTALL)
    scope: dict = {}
    exec(block, scope)
    path = write(absent="case-0002")
    view = open_store(path).select()
    resid = view.resid(layer=2, position="answer", missing="drop")
    cells = view.table().iloc[resid.kept]
    expected = dict(zip(cells.row_id, resid.numpy(), strict=True))
    rows = list(scope["read"](path, 2, "answer"))
    assert {row[0] for row in rows} == set(expected)
    assert {(row[1], row[2], row[3]) for row in rows} == set(zip(cells.persona, cells.case, cells.y_gen, strict=True))
    for row in rows:
        np.testing.assert_array_equal(row[4], expected[row[0]])


def test_equal_records_commit_to_one_name_and_other_records_to_another(tmp_path):
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        names = [writer.commit([samples.record(row) for row in rows]) for rows in (plan.rows[:4], plan.rows[:4])]
        other = writer.commit([samples.record(row) for row in plan.rows[4:8]])
    assert names[0] == names[1] != other
    assert sorted(file.stem for file in (tmp_path / "s" / "shards").iterdir()) == sorted({names[0], other})


def test_where_two_shards_hold_a_row_the_lowest_name_is_read_and_verify_says_so(tmp_path):
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        first = samples.record(plan.rows[0])
        doubled = {site: 2 * resid for site, resid in first.resid.items()}
        other = type(first)(**{**vars(first), "resid": doubled})
        held = {writer.commit([one]): one for one in (first, other)}
    store = open_store(tmp_path / "s", warn=False)
    expected = held[min(held)].resid["prompt_end"][1]
    np.testing.assert_array_equal(store.select().resid(layer=1, position="prompt_end").numpy(), [expected])
    assert len(store.table()) == 1
    (problem,) = store.verify()
    assert problem.file == f"{max(held)}.safetensors"
    assert problem.rows == ("nurse/case-0000",)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"resid": {"prompt_end": np.full((3, 8), np.nan, np.float32)}}, "not finite at layer 0"),
        ({"resid": {"prompt_end": np.zeros((2, 8), np.float32)}}, "shape"),
        ({"resid": {"prompt_end": np.zeros((3, 8), np.float16)}}, "float16"),
        ({"resid": {"persona_end": np.zeros((3, 8), np.float32)}}, "persona_end"),
        ({"label": "nowhere"}, "nowhere"),
        ({"status": "fine"}, "fine"),
        ({"extra": {"array": np.zeros(2)}}, "JSON"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_name_and_nothing_is_written(tmp_path, change, found):
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        good, bad = samples.record(plan.rows[0]), samples.record(plan.rows[1])
        with pytest.raises(ProbeError, match=f"nurse/case-0001.*{found}"):
            writer.commit([good, type(bad)(**{**vars(bad), **change})])
        assert not list((tmp_path / "s" / "shards").iterdir())
        writer.commit([good, bad])
    assert len(open_store(tmp_path / "s", warn=False).table()) == 2


def test_residuals_become_torch_tensors_of_the_same_bits(write):
    torch = pytest.importorskip("torch")
    for dtype in ("float32", "bfloat16"):
        resid = open_store(write(dtype, dtype=dtype)).select().resid(layer=1, position="answer")
        assert resid.torch().dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(resid.torch(dtype=torch.float32).numpy(), resid.numpy())


def test_the_readout_is_loaded_as_it_was_saved_and_not_replaced(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"unembed": rng.standard_normal((3, 8)).astype(np.float32), "norm": np.ones(8, ml_dtypes.bfloat16)}
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.write_readout(tensors, {"norm": "rms", "eps": "1e-06"})
        writer.write_readout(tensors, {"norm": "rms", "eps": "1e-06"})
        with pytest.raises(ProbeError, match="readout"):
            writer.write_readout({"unembed": tensors["unembed"] * 2}, {"norm": "rms", "eps": "1e-06"})
    found, metadata = open_store(tmp_path / "s").readout()
    assert metadata == {"norm": "rms", "eps": "1e-06"}
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in tensors.items()}
