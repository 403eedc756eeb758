"""What `keep: moments` leaves of the analyses: the same numbers as from rows, a variant that says so, or a refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probe.mechanism import Activations, shift_by_layer
from probe.mechanism.geometry.directions import MAKERS
from probe.mechanism.geometry.tables import GeometryTables, geometry
from probe.stages.activations import activations, added_up
from probe.stages.analysis import Question, shift_tables
from probe.stages.capture import capture
from probe.stages.costs import tensor_bytes
from probe.stages.directions import MadeDirections, geometry_tables, make_directions
from probe.stages.inside import look_inside
from probe.stages.preparation import prepare
from probe.stages.relate import relate
from probe.store import Store, open_store
from probe.study import Study
from probe.values import PlannedRow, ProbeError, StoreError
from probe.values.blocks import block_of
from tests.store import moment_samples as samples


def with_answers(row: PlannedRow) -> bool:
    """Every ninth case has no answer under the nurse."""
    return not (row.cell.persona == "nurse" and int(row.cell.case[-4:]) % 9 == 0)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store, Store]:
    """One study, whose rows are kept, added up with the whole covariance, and with that of a projection to 4."""
    folder = tmp_path_factory.mktemp("stores")
    plan = samples.plan(96, rotations=1)
    shards = samples.records(plan, with_answers).values()
    paths = [samples.write(folder / str(k), plan, shards, covariance) for k, covariance in enumerate((None, 64, 4))]
    rows, whole, projected = (open_store(path) for path in paths)
    return rows, whole, projected


def by_blocks(read: Activations) -> Activations:
    """The same rows, where a block of families counts as a family."""
    block = [str(block_of(name, samples.SEED)) for name in read.table["family"]]
    return replace(read, table=read.table.assign(family=block))


def compared(ours: pd.DataFrame, theirs: pd.DataFrame, columns: list[str]) -> None:
    keys = [
        name
        for name in ("persona", "other", "base", "stratum", "layer", "position", "view", "measure", "maker")
        if name in theirs
    ]
    assert len(ours) == len(theirs) > 0
    for key in keys:
        assert ours[key].tolist() == theirs[key].tolist()
    for name in columns:
        np.testing.assert_allclose(
            ours[name].astype(float), theirs[name].astype(float), rtol=1e-5, atol=2e-5, err_msg=name
        )


@pytest.fixture(scope="module")
def tables(stores: tuple[Store, Store, Store]) -> tuple[GeometryTables, GeometryTables]:
    rows, whole, _ = stores
    return geometry(by_blocks(activations(rows)), seed=samples.SEED), geometry_tables(whole)


@pytest.mark.parametrize("name", ["norms", "cosines", "agreement", "wordings", "stability"])
def test_geometry_from_sums_is_that_of_the_rows_with_blocks_for_families(
    tables: tuple[GeometryTables, GeometryTables], name: str
) -> None:
    expected, found = (getattr(one, name) for one in tables)
    at = {"position": "prompt_end", "layer": 1}
    # The covariance of a base of several wordings is a variant of its own; that of one persona is the same.
    kept = (expected.assign(**at)[list(at)] == expected[list(at)]).all(axis=1) & (
        (expected["base"] == "none") | (expected.get("view", "raw") == "raw")
    )
    columns = [one for one in ("value", "low", "high", "n", "n_families", "floor", "with_truth") if one in expected]
    compared(found[kept], expected[kept], columns)
    if name != "stability":
        assert set(expected["view"]) == set(found["view"]) == {"raw", "without_largest", "whitened"}


def test_a_view_of_a_base_of_several_wordings_is_near_that_of_its_rows(
    tables: tuple[GeometryTables, GeometryTables],
) -> None:
    expected, found = (one.norms[(one.norms["layer"] == 1) & (one.norms["stratum"] == "all")] for one in tables)
    far = (found["value"] / expected["value"] - 1).abs()[(expected["position"] == "prompt_end").to_numpy()]
    assert 1e-5 < far.max() < 0.1


def test_where_an_arm_lacks_cases_the_table_says_that_means_are_compared(
    tables: tuple[GeometryTables, GeometryTables],
) -> None:
    expected, found = (one.norms[(one.norms["layer"] == 1) & (one.norms["view"] == "raw")] for one in tables)
    found = found.reset_index(drop=True)
    told = found[found["value"].notna()]
    notes = {position: set(own["note"]) for position, own in told.groupby("position")}
    assert notes["prompt_end"] == {""}
    assert all(note.startswith("not paired in ") for note in notes["answer"])
    pooled = [
        one[(one["position"] == "answer") & (one["stratum"] == "all") & one["persona"].isin(("nurse", "doctor"))]
        for one in (expected, found)
    ]
    ratio = pooled[1]["value"].to_numpy() / pooled[0]["value"].to_numpy()
    assert len(ratio) == 4
    assert 1e-5 < np.abs(ratio - 1).max() < 0.3


def test_planted_directions_from_sums_are_those_from_rows(stores: tuple[Store, Store, Store]) -> None:
    rows, whole, _ = stores
    ours, theirs = ({key(one): one for one in make_directions(store).directions} for store in (whole, rows))
    assert {maker for *_, maker in ours} == set(MAKERS) - {"probe_weight"}
    assert ours.keys() == {named for named in theirs if named[-1] != "probe_weight"}
    for named, one in ours.items():
        other = theirs[named]
        if named[-1] == "paired_mean" and one.site.position == "answer":
            continue  # unpaired there
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-5 * np.linalg.norm(other.vector))
        assert (one.fitted_on, one.cases) == (other.fitted_on, other.cases)
    nurse = ours["nurse", "none", 1, "prompt_end", "paired_mean"].vector
    assert nurse[len("nurse")] == pytest.approx(2, abs=0.2)
    assert np.abs(ours["nurse", "none", 0, "prompt_end", "paired_mean"].vector).max() < 0.5


def key(one: Any) -> tuple[str, str, int, str, str]:
    return one.persona, one.base, one.site.layer, one.site.position, one.maker


def test_what_judges_a_direction_without_rows_is_the_same_and_the_rest_is_not_there(
    stores: tuple[Store, Store, Store],
) -> None:
    rows, whole, _ = stores
    ours, theirs = (at_prompt_end(make_directions(store)) for store in (whole, rows))
    compared(ours, theirs, ["norm", "n", "n_judged", "projection", "with_paired_mean"])
    assert ours["auroc"].isna().all()
    assert not theirs["auroc"].isna().any()
    assert (ours["value"] - theirs["value"]).abs().max() < 0.1
    assert (ours["value"] != theirs["value"]).any()  # the norm below it is that of blocks


def at_prompt_end(made: MadeDirections) -> pd.DataFrame:
    found = made.table
    kept = (found["position"] == "prompt_end") & (found["layer"] == 1) & (found["maker"] != "probe_weight")
    return found[kept].reset_index(drop=True)


def test_a_projection_gives_its_own_view_and_no_discriminant(stores: tuple[Store, Store, Store]) -> None:
    _, whole, projected = stores
    norms = geometry_tables(projected).norms
    assert set(norms["view"]) == {"raw", "without_largest", "whitened_projected"}
    plain, other = (
        one[(one["view"] == "raw") & (one["position"] == "prompt_end")]["value"]
        for one in (geometry_tables(whole).norms, norms)
    )
    np.testing.assert_array_equal(plain, other)
    table = make_directions(projected).table
    refused = table[table["maker"] == "whitened_difference"]["note"]
    assert refused.str.contains("needs the covariance of all 12 dimensions, and the store keeps that of 4").all()
    assert table[table["maker"] == "probe_weight"]["note"].str.contains("fitted on rows").all()


def test_the_size_of_a_shift_from_sums_is_that_of_the_rows_with_blocks_for_families(
    stores: tuple[Store, Store, Store],
) -> None:
    rows, whole, _ = stores
    read = by_blocks(activations(rows))

    def of(persona: str, layer: int, position: str) -> tuple[pd.DataFrame, np.ndarray]:
        site = read.at(layer, position)
        own = (read.table["persona"].iloc[site.places] == persona).to_numpy()
        return read.table.iloc[site.places[own]], site.x[own]

    expected = shift_by_layer(of, list(samples.PERSONAS), (0, 1))
    found = shift_tables(whole)
    found = found[found["position"] == "prompt_end"].reset_index(drop=True)
    compared(found, expected, ["value", "low", "high", "n", "floor", "floor_max", "naive", "base_norm"])
    assert found[["per_case", "common"]].isna().all(axis=None)
    assert not expected["per_case"].isna().any()


def test_what_needs_rows_is_refused_with_one_sentence_and_verdicts_from_labels_stand(
    stores: tuple[Store, Store, Store], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, whole, _ = stores
    with pytest.raises(StoreError, match="needs the residual of every row"):
        activations(whole)
    with pytest.raises(ProbeError, match="keeps every row"):
        added_up(rows)
    found = relate(whole, Question(base="none"))
    expected = relate(rows.select(case=[str(case["id"]) for case in rows.plan.cases]).table(), Question(base="none"))
    pd.testing.assert_frame_equal(found.relation, expected.relation)
    assert found.prediction.empty
    assert found.sides.empty
    assert "needs the residual of every row" in capsys.readouterr().out
    assert not found.who_changes.empty
    made = look_inside(whole, ("directions", "probes", "lens"))
    assert [set(one.tables) >= {"norms", "directions"} for one in made] == [True]
    told = capsys.readouterr().out
    assert told.count("needs the residual of every row") == 2


def test_a_run_keeps_sums_in_place_of_rows_and_everything_else_as_ever(tmp_path: Path) -> None:
    def study(**settings: Any) -> Study:
        return Study.from_mapping(
            {
                "name": "sums",
                "model": {"id": "organism"},
                "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
                "task": "builtin:triage",
                "cases": "builtin:triage",
                "limit": 8,
                "capture": {"batch_size": 4, "layers": [0, 6], "streams": ["resid", "mlp_out"], **settings},
                "generation": {"max_new_tokens": 40},
            }
        )

    kept, added = study(), study(keep="moments", covariance=8)
    for asked, name in ((kept, "rows"), (added, "sums")):
        assert capture(asked, store=tmp_path / name).exit_status == 0
    rows, sums = (open_store(tmp_path / name) for name in ("rows", "sums"))
    columns = rows.table().select_dtypes("number").columns
    np.testing.assert_allclose(sums.table()[columns], rows.table()[columns], rtol=1e-4, atol=1e-4)
    assert sums.table()["y_gen"].tolist() == rows.table()["y_gen"].tolist()
    assert "moments" not in rows.manifest["capture"]
    assert sums.manifest["capture"]["moments"] == {"blocks": 16, "seed": 0, "covariance": 8}
    x = np.asarray(rows.select(persona="nurse").resid(layer=6, position="prompt_end"))
    read = added_up(sums).at(6, "prompt_end")
    assert read.lines is not None
    own = read.lines.sums.take(np.flatnonzero((added_up(sums).table["persona"] == "nurse").to_numpy()))
    whole = own.merged(np.zeros(len(own.n), int))
    np.testing.assert_allclose(whole.mean[0], x.mean(0), atol=1e-3)
    np.testing.assert_allclose(whole.squares[0], x.var(0) * len(x), rtol=1e-2, atol=1e-2)
    preparation = prepare(added)
    stored = [spec for shard in sums.shards for name, spec in shard.header.tensors.items() if ".L0" in name]
    held = sum(spec.stop - spec.start for spec in stored if spec.dtype == np.float32)
    assert held <= tensor_bytes(preparation.resolved, preparation.cells.jobs) < 1.3 * held
    again = capture(added, store=tmp_path / "sums")
    assert (again.resumed, again.exit_status) == (16, 0)
