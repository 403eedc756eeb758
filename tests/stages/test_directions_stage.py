"""Directions on disk, and what `probe directions` writes for a store, without a model and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from probe.mechanism.geometry.directions import MAKERS, contrast_of
from probe.stages.direction_files import load_directions, save_directions
from probe.stages.directions import geometry_tables, make_directions, save_made, write_directions
from probe.store import StoreLock, open_store, open_writer
from probe.values import Direction, ProbeError
from tests.mechanism.geometry.geometry_samples import D, cells, unit
from tests.store import store_samples as samples
from tests.test_house import WITHOUT_TORCH


def store_at(path: Path, n_cases: int = 40) -> Path:
    """A nurse, a doctor and no persona on forty cases in twenty families."""
    manifest = {**samples.manifest(), "study": {"name": "odd", "base": "none"}}
    plan = samples.plan(("nurse", "doctor", "none"), n_cases)
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, manifest, lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            writer.commit([samples.record(row) for row in plan.rows if row.shard == shard])
    return path


def made() -> list[Direction]:
    read = cells({"nurse": 3 * unit(1)}, np.random.default_rng(0), families=10)
    base = (read.table["persona"] == "none").to_numpy()
    whole = contrast_of(read.table, read.at(1, "prompt_end"), "nurse", "none", base)
    told = {"model": "organism", "revision": "", "split_seed": 3}
    return [replace(maker(whole), provenance=told) for maker in MAKERS.values()]


def assert_equal(one: Direction, other: Direction) -> None:
    for field in fields(Direction):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "vector":
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs, field.name


def test_a_saved_direction_reads_back_equal_and_the_same_bytes_are_written_twice(tmp_path: Path) -> None:
    directions = made()
    directions.append(replace(directions[0], persona="Krankenschwester ✚ [b]", fitted_on=frozenset({"a"})))
    path = save_directions(tmp_path / "deep" / "one.safetensors", directions)
    found = load_directions(path, d_model=D)
    assert len(found) == len(directions) == 5
    for one, other in zip(directions, found, strict=True):
        assert_equal(one, other)
    again = save_directions(tmp_path / "two.safetensors", directions)
    assert again.read_bytes() == path.read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_of_another_width_is_refused_and_the_right_one_is_read(tmp_path: Path) -> None:
    path = save_directions(tmp_path / "one.safetensors", made())
    assert load_directions(path, d_model=D)
    with pytest.raises(ProbeError, match=f"says {D} and holds .*{D + 1} was expected"):
        load_directions(path, d_model=D + 1)
    with pytest.raises(ProbeError, match="one model width"):
        save_directions(path, [*made(), replace(made()[0], vector=np.ones(3, np.float32))])
    with pytest.raises(ProbeError, match="no direction"):
        save_directions(path, [])


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"direction.0": np.ones(D, np.float32)}, foreign)
    with pytest.raises(ProbeError, match="holds no directions of this tool"):
        load_directions(foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(save_directions(tmp_path / "one.safetensors", made()).read_bytes()[:200])
    for path in (cut, tmp_path / "absent.safetensors"):
        with pytest.raises(ProbeError, match="cannot be read"):
            load_directions(path)
    newer = {"schema": "persona-probe-directions/9", "d_model": D, "directions": [], "sets": []}
    save_file({"x": np.ones(1)}, foreign, metadata={"persona-probe": json.dumps(newer)})
    with pytest.raises(ProbeError, match="upgrade"):
        load_directions(foreign)


def test_a_store_gives_directions_with_their_origin_fitted_on_training_families_only(tmp_path: Path) -> None:
    store = open_store(store_at(tmp_path / "store"))
    found = make_directions(store)
    table = found.table
    assert len(found.directions) == len(table) == 2 * 3 * 2 * len(MAKERS)  # personas, layers, positions
    assert table["note"].isna().sum() + (table["note"] == "").sum() > 0
    one = found.directions[0]
    assert one.provenance["model"] == "tiny"
    assert one.provenance["revision"] == "r1"
    assert one.provenance["store"] == store.layout.identity
    assert one.provenance["split_seed"] == 0
    everyone = set(store.table()["family"])
    assert all(set() < one.fitted_on < everyone for one in found.directions)
    paths = save_made(tmp_path / "out", found)
    assert sorted(path.name for path in paths) == sorted(
        f"{position}.{maker}.safetensors" for position in ("prompt_end", "answer") for maker in MAKERS
    )
    read = [direction for path in paths for direction in load_directions(path, d_model=8)]
    assert len(read) == len(found.directions)


def test_the_same_site_of_the_store_is_what_a_direction_was_fitted_on(tmp_path: Path) -> None:
    store = open_store(store_at(tmp_path / "store"))
    found = make_directions(store)
    one = next(d for d in found.directions if (d.persona, d.site.layer, d.maker) == ("nurse", 2, "paired_mean"))
    mine, none = (
        store.select(persona=name, family=sorted(one.fitted_on), case=sorted(one.cases)) for name in ("nurse", "none")
    )
    expected = [view.resid(layer=2, position=one.site.position).numpy().mean(0) for view in (mine, none)]
    assert one.vector == pytest.approx(expected[0] - expected[1], abs=1e-5)


def test_tables_figures_and_files_are_written_and_two_cases_are_too_few_but_no_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(store_at(tmp_path / "store"))
    written = {path.relative_to(tmp_path / "out").as_posix() for path in write_directions(store, tmp_path / "out")}
    assert {"norms.csv", "cosines.csv", "stability.csv", "agreement.csv", "directions.csv", "norms.pdf"} <= written
    assert "directions/prompt_end.paired_mean.safetensors" in written
    assert "paired mean against no persona at prompt_end" in capsys.readouterr().out
    few = open_store(store_at(tmp_path / "few", n_cases=2))
    write_directions(few, tmp_path / "few_out")
    norms = pd.read_csv(tmp_path / "few_out" / "norms.csv")
    assert norms["value"].isna().all()
    assert norms["note"].str.startswith("undefined").all()


def test_a_base_that_is_not_there_is_refused_and_the_one_that_is_runs(tmp_path: Path) -> None:
    store = open_store(store_at(tmp_path / "store"))
    with pytest.raises(ProbeError, match="base persona 'nobody' is not in the table"):
        geometry_tables(store, base="nobody")
    assert set(geometry_tables(store, base="doctor").norms["persona"]) == {"nurse", "none"}


def test_geometry_and_directions_run_where_torch_is_not_importable(tmp_path: Path) -> None:
    path = store_at(tmp_path / "store")
    code = WITHOUT_TORCH + "from probe.store import open_store\nfrom probe.stages.directions import write_directions\n"
    code += f"from pathlib import Path\nassert write_directions(open_store({str(path)!r}), Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
