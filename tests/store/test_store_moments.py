"""A store that keeps sums over rows: the same in any order, resumed, run twice; what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probe.mechanism.splits import part_of
from probe.store import Plan, StoreLock, open_store, open_writer
from probe.store.compact import compact
from probe.store.repair import repair
from probe.store.set_reading import AddedUp, added_up
from probe.store.shards import shards_in
from probe.values import CellRecord, ChangedPrompt, PlannedRow, ProbeError, ProbeWarning, StoreError
from probe.values.blocks import block_of
from probe.values.sums import Sums, projection, sums_of
from tests.store import moment_samples as samples

SITES = [(layer, position) for layer in range(samples.LAYERS) for position in ("prompt_end", "answer")]


def without_some(row: PlannedRow) -> bool:
    """Every seventh case has no answer under the nurse."""
    return not (row.cell.persona == "nurse" and int(row.cell.case[-4:]) % 7 == 0)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return samples.plan(40, per_shard=16)


@pytest.fixture(scope="module")
def shards(plan: Plan) -> list[list[CellRecord]]:
    return list(samples.records(plan, without_some).values())


def sums(path: Path) -> AddedUp:
    return added_up(open_store(path).select())


def assert_same(one: AddedUp, other: AddedUp, *, exactly: bool = False) -> None:
    assert [vars(line) for line in one.lines] == [vars(line) for line in other.lines]
    for layer, position in SITES:
        ours, theirs = one.at(layer, position), other.at(layer, position)
        assert ours is not None
        assert theirs is not None
        assert [rows.tolist() for rows in ours.rows] == [rows.tolist() for rows in theirs.rows]
        for name in vars(ours.sums):
            left, right = getattr(ours.sums, name), getattr(theirs.sums, name)
            if exactly:
                np.testing.assert_array_equal(left, right)
            else:
                np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("axes", [5, 3, 0])
def test_the_sums_of_a_union_follow_from_those_of_its_parts(axes: int) -> None:
    rng = np.random.default_rng(0)
    x = 100 * rng.normal(size=5) + rng.normal(size=(60, 5)) ** 3
    parts = sums_of(x, rng.integers(0, 7, 60), axes)
    whole, found = sums_of(x, np.zeros(60, int), axes), parts.merged(np.zeros(7, int))
    for name in vars(whole):
        right = getattr(whole, name)
        np.testing.assert_allclose(getattr(found, name), right, rtol=1e-9, atol=1e-9 * np.abs(right).max(initial=0))
    assert not np.allclose(parts.take(np.arange(6)).merged(np.zeros(6, int)).mean, whole.mean, rtol=1e-9)


def test_the_sums_are_what_their_names_say() -> None:
    x = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    found = sums_of(x, np.zeros(9, int), 4)
    apart = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    np.testing.assert_allclose(found.products[0] / 9, np.cov(x.T, bias=True), rtol=1e-6)
    np.testing.assert_allclose(found.squares[0], np.diag(found.products[0]))
    np.testing.assert_allclose(found.cubes[0], sum((row @ row) * row for row in apart))
    np.testing.assert_allclose(found.fourths[0], sum((row @ row) ** 2 for row in apart))


def test_the_projection_is_the_same_everywhere_and_keeps_lengths_on_average() -> None:
    signs = projection(9, 4) * 2
    assert set(signs.ravel().tolist()) == {-1.0, 1.0}
    assert "".join("-+"[int(sign > 0)] for sign in signs[0]) == "+---+--++"  # 01110110 0.. of SHAKE-256 by another tool
    x = np.random.default_rng(0).normal(size=(200, 400))
    ratio = ((x @ projection(400, 64).T) ** 2).sum() / (x**2).sum()
    assert ratio == pytest.approx(1, abs=0.1)


def test_two_blocks_of_families_lie_in_no_two_parts_of_a_split_in_sixteenths() -> None:
    names = np.array([f"family-{k}" for k in range(500)])
    part = part_of(names, {"train": 0.5, "validation": 0.25, "test": 0.25}, seed=5)
    found: dict[int, set[str]] = {}
    for name, own in zip(names, part, strict=True):
        found.setdefault(block_of(name, 5), set()).add(str(own))
    assert found == {block: {"train" if block < 8 else "validation" if block < 12 else "test"} for block in range(16)}


@pytest.mark.parametrize("covariance", [64, 4, 0])
def test_what_is_read_are_the_sums_of_the_rows_that_another_store_keeps(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]], covariance: int
) -> None:
    kept = open_store(samples.write(tmp_path / "rows", plan, shards, None)).select()
    found = sums(samples.write(tmp_path / "sums", plan, shards, covariance))
    axes = min(covariance, samples.D)
    keys = [line_of(row) for row in kept.rows]
    for layer, position in SITES:
        site = found.at(layer, position)
        assert site is not None
        x = kept.resid(layer=layer, position=position, missing="nan").numpy().astype(np.float64)
        for at, (line, rows) in enumerate(zip(site.lines, site.rows, strict=True)):
            first = keys[found.lines[line].first]
            own = [k for k, named in enumerate(keys) if named == first]
            assert rows.tolist() == [k for k in own if not np.isnan(x[k]).any()]
            expected = sums_of(x[rows], np.zeros(len(rows), int), axes)
            for name in vars(expected):
                left, right = getattr(site.sums, name)[at], getattr(expected, name)[0]
                np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6 * np.abs(right).max(initial=1))


def line_of(row) -> tuple[object, ...]:  # type: ignore[no-untyped-def]  # a row of a view
    cell = row.planned.cell
    return cell.persona, cell.condition, row.case["stratum"], block_of(row.case["family"], samples.SEED)


def test_shards_in_any_order_and_written_twice_give_the_same_bits(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]
) -> None:
    one = samples.write(tmp_path / "one", plan, shards)
    other = samples.write(tmp_path / "other", plan, [*reversed(shards), *shards[:2]])
    names = [sorted(file.name for file in (path / "shards").iterdir()) for path in (one, other)]
    assert names[0] == names[1]
    assert len(names[0]) == len(shards) > 10
    assert_same(sums(one), sums(other), exactly=True)
    assert open_store(one).verify() == []


def test_a_run_that_ended_between_shards_goes_on_to_the_same_sums(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]
) -> None:
    path = samples.write(tmp_path / "store", plan, shards[:5])
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(64), lock=lock)
        writer.add_plan(plan)
        left = {row.cell.row_id for row in writer.pending()}
    rest = [[record for record in shard if record.cell.row_id in left] for shard in shards]
    samples.write(path, plan, [shard for shard in rest if shard])
    assert_same(sums(path), sums(samples.write(tmp_path / "whole", plan, shards)), exactly=True)


def test_a_row_that_stands_in_two_sums_counts_once(tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]) -> None:
    first, *others = shards
    divided = [first[:3], first[3:4], first[4:]]
    path = samples.write(tmp_path / "store", plan, [*divided, first, *others])
    assert len(open_store(path).shards) == len(shards) + 3
    whole = sums(samples.write(tmp_path / "whole", plan, shards))
    assert_same(sums(path), whole)
    assert_same(sums(samples.write(tmp_path / "divided", plan, [*divided, *others])), whole)


def test_a_row_whose_every_sum_overlaps_with_a_larger_one_is_left_out_and_told(tmp_path: Path) -> None:
    plan = samples.plan(200, per_shard=400, rotations=1)
    shard = next(iter(samples.records(plan).values()))
    sets: dict[object, list[CellRecord]] = {}
    for record in shard:
        sets.setdefault((record.cell.persona, record.cell.condition, record.group), []).append(record)
    own = max(sets.values(), key=len)
    assert len(own) > 4
    path = samples.write(tmp_path / "store", plan, [own[:-1], own[-2:]])
    with pytest.warns(ProbeWarning, match=r"1 rows of .* are in no sum that counts"):
        found = added_up(open_store(path, warn=False).select())
    assert [found.view.rows[at].planned.cell for at in found.left] == [own[-1].cell]
    assert sum(len(rows) for rows in found.at(0, "prompt_end").rows) == len(own) - 1  # type: ignore[union-attr]


@pytest.mark.parametrize("on_changed", ["error", "recapture", "new-condition"])
def test_an_edited_text_is_refused_whatever_is_asked_and_nothing_is_written(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]], on_changed: str
) -> None:
    path = samples.write(tmp_path / "store", plan, shards)
    before = samples.samples.content(path)
    edited = samples.plan(40, per_shard=16, edition="new ")
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(64), lock=lock)
        with pytest.raises(ChangedPrompt, match=r"keeps sums over rows .* which the old texts cannot leave"):
            writer.add_plan(edited, on_changed)  # type: ignore[arg-type]
        assert writer.add_plan(plan).committed == len(plan.rows)
    assert samples.samples.content(path) == before


def test_more_cases_are_added_and_fewer_or_other_families_are_refused_where_they_are_read(
    tmp_path: Path, plan: Plan
) -> None:
    few = samples.plan(30, per_shard=16)
    path = samples.write(tmp_path / "store", few, samples.records(few).values())
    assert sum(map(len, sums(path).at(0, "prompt_end").rows)) == len(few.rows)  # type: ignore[union-attr]
    known = {row.cell.row_id for row in few.rows}
    new = [[one for one in shard if one.cell.row_id not in known] for shard in samples.records(plan).values()]
    samples.write(path, plan, [shard for shard in new if shard])
    assert sum(map(len, sums(path).at(0, "prompt_end").rows)) == len(plan.rows)  # type: ignore[union-attr]
    with pytest.raises(StoreError, match=r"in a sum with .* rows that are not asked for"):
        added_up(open_store(path).select(case=[f"case-{k:04d}" for k in range(7)]))
    samples.write(path, few, [])
    assert sums(path)  # all the cases of the sums that were there first
    moved = replace(plan, cases=tuple({**case, "family": case["id"]} for case in plan.cases))
    samples.write(path, moved, [])
    with pytest.raises(StoreError, match="another stratum or block of families"):
        sums(path)


def test_rows_are_refused_with_one_sentence_and_all_else_of_a_row_is_there(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]
) -> None:
    store = open_store(samples.write(tmp_path / "sums", plan, shards))
    kept = open_store(samples.write(tmp_path / "rows", plan, shards, None))
    for ask in (
        lambda: store.select().resid(layer=0, position="prompt_end"),
        lambda: store.select().stack(position="prompt_end"),
        lambda: list(store.select().batches(layer=0, position="prompt_end")),
        lambda: store.select().activation_cache(position="prompt_end")["resid_post", 0].shape,
        lambda: store.export("numpy", tmp_path / "out", layers=[0]),
    ):
        with pytest.raises(StoreError, match=r"needs the residual of every row.*keep: moments"):
            ask()
    with pytest.raises(StoreError, match="keeps every row"):
        added_up(kept.select())
    assert store.table().equals(kept.table())
    for one, other in zip(store.select().records(), kept.select().records(), strict=True):
        assert (one.cell, one.gen_text, one.positions, one.label) == (
            other.cell,
            other.gen_text,
            other.positions,
            other.label,
        )
        assert one.resid == {}
    assert store.export("csv", tmp_path / "table.csv").exists()


def test_a_flipped_bit_of_a_sum_is_found_with_the_rows_that_are_in_it(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]
) -> None:
    path = samples.write(tmp_path / "store", plan, shards)
    shard = shards_in(path, open_store(path).layout.identity)[0]
    spec = shard.spec("mean.resid.prompt_end.L01")
    content = bytearray(shard.path.read_bytes())
    content[spec.start + spec.row_bytes] ^= 1  # of the second set
    shard.path.write_bytes(content)
    (problem,) = open_store(path).verify()
    sets = shard.whole("sets")
    assert problem.tensor == "mean.resid.prompt_end.L01"
    assert len(problem.rows) == (sets == 1).sum()
    with pytest.raises(StoreError, match="fails its crc32"):
        sums(path).at(1, "prompt_end")
    with StoreLock.acquire(path) as lock:
        assert repair(lock).moved == (shard.file.name,)
    samples.write(path, plan, shards)
    assert_same(sums(path), sums(samples.write(tmp_path / "whole", plan, shards)), exactly=True)


def test_a_row_that_is_not_finite_and_says_so_is_in_no_sum_and_one_that_does_not_is_refused(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]
) -> None:
    first, *others = shards
    bad = {site: np.where(site == "prompt_end", np.nan, x).astype(np.float32) for site, x in first[0].resid.items()}
    with pytest.raises(ProbeError, match="not finite"):
        samples.write(tmp_path / "refused", plan, [[replace(first[0], resid=bad), *first[1:]]])
    path = samples.write(tmp_path / "store", plan, [[replace(first[0], resid=bad, nonfinite=9), *first[1:]], *others])
    found = sums(path).at(0, "prompt_end")
    assert found is not None
    assert np.isfinite(found.sums.products).all()
    assert sum(map(len, found.rows)) == len(plan.rows) - 1


def test_nothing_is_compacted(tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]) -> None:
    path = samples.write(tmp_path / "store", plan, [shards[0][:3], *shards])
    with StoreLock.acquire(path) as lock, pytest.raises(StoreError, match="which no row can leave"):
        compact(lock)


def test_a_store_of_rows_and_one_of_sums_are_not_continued_by_each_other(
    tmp_path: Path, plan: Plan, shards: list[list[CellRecord]]
) -> None:
    path = samples.write(tmp_path / "store", plan, shards[:1], None)
    with pytest.raises(StoreError, match=r"capture\.moments nothing"):
        samples.write(path, plan, shards[1:], 64)


def test_nothing_of_a_site_that_no_row_has(tmp_path: Path, plan: Plan) -> None:
    path = samples.write(tmp_path / "store", plan, samples.records(plan, lambda row: False).values())
    assert sums(path).at(0, "answer") is None
    assert isinstance(sums(path).at(0, "prompt_end").sums, Sums)  # type: ignore[union-attr]
