"""Exports, each read back by the library that owns the format, and compared exactly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import store_samples as samples
from conftest import Write

from probe.store import View, exports, open_store
from probe.store.exports import Selection, guarded
from probe.store.exports_zarr import to_xarray
from probe.store.formats import FORMATS, export
from probe.store.names import UnknownName
from probe.store.residuals import Residuals
from probe.values import CorruptShard, ProbeError

ABSENT = "case-0002"


@pytest.fixture(params=["float32", "bfloat16"])
def view(request: pytest.FixtureRequest, write: Write) -> View:
    """Twelve rows in an order of their own; one case has no answer."""
    opened = open_store(write(dtype=request.param, absent=ABSENT))
    return opened.select(persona=["none", "nurse"], where="case != 'case-0004'")


def whole(view: View, layer: int, position: str) -> np.ndarray:
    """Float32 ``[rows, d_model]`` with NaN where the row has no such position: what every export must hold."""
    return view.resid(layer=layer, position=position, missing="nan").numpy()


def same_table(found: pd.DataFrame, table: pd.DataFrame) -> None:
    assert list(found.columns[: len(table.columns)]) == list(table.columns)
    for name in table:
        ours, theirs = table[name], found[name]
        if pd.api.types.is_numeric_dtype(ours):
            assert np.array_equal(ours.to_numpy(), theirs.to_numpy(), equal_nan=ours.dtype.kind == "f"), name
        else:
            told = [value or "" if pd.notna(value) else "" for value in ours]
            assert told == [value or "" if pd.notna(value) else "" for value in theirs], name


def test_numpy_gives_back_every_entry_and_which_rows_it_belongs_to(view: View, tmp_path: Path) -> None:
    folder = view.export("numpy", tmp_path / "out")
    same_table(pd.read_parquet(folder / "table.parquet"), view.table())
    rows = np.load(folder / "rows.answer.npy", allow_pickle=False)
    assert [view.table()["case"][row] == ABSENT for row in range(len(view))].count(True) == len(view) - len(rows)
    assert not (folder / "rows.prompt_end.npy").exists()
    for layer in range(3):
        assert np.array_equal(np.load(folder / f"resid.prompt_end.L{layer:02d}.npy"), whole(view, layer, "prompt_end"))
        assert np.array_equal(np.load(folder / f"resid.answer.L{layer:02d}.npy"), whole(view, layer, "answer")[rows])
    facts = json.loads((folder / "export.json").read_text("utf-8"))
    assert (facts["layers"], facts["positions"], facts["options"]) == (
        [0, 1, 2],
        ["prompt_end", "answer"],
        list(samples.OPTIONS),
    )


def test_parquet_gives_back_table_and_vectors_and_null_where_a_site_is_absent(view: View, tmp_path: Path) -> None:
    file = view.export("parquet", tmp_path / "rows.parquet")
    found = pq.read_table(file)
    same_table(found.to_pandas(), view.table())
    for layer in range(3):
        for position in samples.POSITIONS:
            column = found.column(f"resid.{position}.L{layer:02d}").to_pylist()
            vectors = np.array([[np.nan] * 8 if value is None else value for value in column], np.float32)
            assert np.array_equal(vectors, whole(view, layer, position), equal_nan=True)
    assert json.loads(found.schema.metadata[b"persona-probe"])["d_model"] == 8


def test_a_parquet_of_many_row_groups_holds_the_same(
    view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = pq.read_table(view.export("parquet", tmp_path / "once.parquet"))
    monkeypatch.setattr(exports, "GROUP_BYTES", 1)
    file = view.export("parquet", tmp_path / "often.parquet")
    assert pq.ParquetFile(file).num_row_groups > 3 > pq.ParquetFile(tmp_path / "once.parquet").num_row_groups
    assert pq.read_table(file).equals(once)


def test_zarr_gives_back_every_layer_and_its_dimensions(view: View, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(view.export("zarr", tmp_path / "out.zarr")), mode="r")
    assert group.metadata.zarr_format == 3
    for position in samples.POSITIONS:
        array = group[f"resid_{position}"]
        assert array.metadata.dimension_names == ("layer", "row", "d_model")
        assert array.chunks == (1, len(view), 8)
        for at, layer in enumerate(group["layer"][:]):
            assert np.array_equal(array[at], whole(view, int(layer), position), equal_nan=True)
    assert group["case"][:].tolist() == view.table()["case"].tolist()
    assert group.attrs["dtype_in_store"] == view.frame.layout.dtype


def test_xarray_reads_the_export_lazily_and_equals_the_dataset_in_memory(view: View, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    opened = xarray.open_zarr(view.export("xarray", tmp_path / "out.zarr"), consolidated=False, chunks=None)
    same_table(opened[list(view.table().columns)].to_dataframe(), view.table())
    memory = to_xarray(Selection.of(view))
    for position in samples.POSITIONS:
        assert np.array_equal(opened[f"resid_{position}"].sel(layer=2).values, whole(view, 2, position), equal_nan=True)
        xarray.testing.assert_equal(opened[f"resid_{position}"].load(), memory[f"resid_{position}"])


def test_datasets_give_back_table_and_vectors(view: View, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = view.export("datasets", tmp_path / "out")
    found = datasets.load_from_disk(str(folder))
    same_table(found.remove_columns([name for name in found.column_names if "resid" in name]).to_pandas(), view.table())
    column = found["resid.answer.L01"]
    vectors = np.array([[np.nan] * 8 if value is None else value for value in column], np.float32)
    assert np.array_equal(vectors, whole(view, 1, "answer"), equal_nan=True)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]  # nothing is left beside it


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_nothing_that_exists_is_written_over_by_any_format(view: View, tmp_path: Path, to: str) -> None:
    target = tmp_path / "taken"
    target.write_text("precious", encoding="utf-8")
    if to in ("zarr", "xarray", "datasets"):
        pytest.importorskip("zarr" if to != "datasets" else "datasets")
    with pytest.raises(ProbeError, match="exists"):
        export(view, to, target)
    assert target.read_text("utf-8") == "precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["taken"]


@pytest.mark.parametrize("to", ["numpy", "parquet", "zarr", "datasets"])
def test_an_export_that_fails_half_way_leaves_nothing_and_can_be_repeated(
    view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    if to in ("zarr", "datasets"):
        pytest.importorskip(to)
    reads, read = 0, Residuals.numpy

    def damaged(self: Residuals, *args: Any, **options: Any) -> np.ndarray:
        nonlocal reads
        reads += 1
        if reads > 4:
            raise CorruptShard("damaged")
        return read(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Residuals, "numpy", damaged)
        with pytest.raises(CorruptShard):
            view.export(to, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert view.export(to, tmp_path / "out").exists()


def test_only_the_layers_positions_and_rows_asked_for_are_written(view: View, tmp_path: Path) -> None:
    some = view.select(persona="nurse")
    found = pq.read_table(some.export("parquet", tmp_path / "some.parquet", layers=[2, 0], positions=["answer"]))
    vectors = [name for name in found.column_names if name.startswith("resid.")]
    assert vectors == ["resid.answer.L02", "resid.answer.L00"]
    assert set(found.column("persona").to_pylist()) == {"nurse"}
    for asked in ({"layers": [3]}, {"positions": ["anwser"]}):
        with pytest.raises(UnknownName, match=r"3|anwser"):
            some.export("numpy", tmp_path / "none", **asked)
    with pytest.raises(ProbeError, match="numpy, zarr"):
        some.export("numpi", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_empty_selection_keeps_its_columns(view: View, tmp_path: Path) -> None:
    none = view.select(where="margin < 0")
    assert len(none) == 0
    found = pq.read_table(none.export("parquet", tmp_path / "none.parquet"))
    assert found.num_rows == 0
    assert "resid.answer.L00" in found.column_names
    assert pd.read_csv(none.export("csv", tmp_path / "none.csv")).empty


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(tmp_path: Path, write: Write) -> None:
    evil = ["=cmd|' /C calc'!A0", "+1", "-2", "@SUM(A1)", "\tx", "plain", None]
    table = pd.DataFrame({"persona": pd.Series(evil, dtype=object), "-logp": [-1.5] * 7})
    found = guarded(table)
    assert [str(value)[:1] not in "=+-@\t" for value in found["persona"]] == [True] * 7
    assert found["'-logp"].tolist() == [-1.5] * 7
    assert found["persona"][5] == "plain"
    assert pd.isna(found["persona"][6])
    view = open_store(write(plan=samples.plan(("=nurse", "none")))).select()
    read = pd.read_csv(view.export("csv", tmp_path / "t.csv"))
    assert set(read["persona"]) == {"'=nurse", "none"}
    assert np.array_equal(read["margin"], view.table()["margin"])


@pytest.mark.parametrize("to", ["numpy", "parquet", "zarr"])
def test_no_more_than_one_layer_is_read_at_a_time(
    view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    if to == "zarr":
        pytest.importorskip(to)
    most, read = 0, Residuals.numpy

    def watched(self: Residuals, *args: Any, **options: Any) -> np.ndarray:
        nonlocal most
        most = max(most, len(self) * self.d_model)
        return read(self, *args, **options)

    monkeypatch.setattr(Residuals, "numpy", watched)
    monkeypatch.setattr(View, "stack", None)
    monkeypatch.setattr(exports, "GROUP_BYTES", 1)
    view.export(to, tmp_path / "out")
    assert 0 < most <= len(view) * 8


@pytest.mark.parametrize(("to", "package"), [("zarr", "zarr"), ("xarray", "zarr"), ("datasets", "datasets")])
def test_a_missing_package_is_one_line_that_names_the_install_command(
    view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ProbeError, match=rf'{package} is not installed; run: pip install "persona-probe\[export\]"'):
        view.export(to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
