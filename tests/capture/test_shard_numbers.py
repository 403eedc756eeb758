"""Shards hold prompts that begin alike, in the order of the plan; where all of them do, shards are runs of the plan."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from probe.capture import shard_numbers
from probe.values import Cell, Condition


def cells(personas: int, cases: int, wordings: int = 1, rotations: int = 1) -> list[Cell]:
    """In the order of a study: persona, case, condition."""
    return [
        Cell(f"p{p}", f"c{c}", Condition(wording=w, rotation=r))
        for p, c, w, r in product(*map(range, (personas, cases, wordings, rotations)))
    ]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))
def test_shards_are_full_and_hold_as_few_beginnings_as_can_be(
    personas: int, cases: int, wordings: int, rotations: int, size: int
) -> None:
    found = cells(personas, cases, wordings, rotations)
    numbers = shard_numbers(found, size)
    shards = [
        [cell for cell, number in zip(found, numbers, strict=True) if number == k] for k in range(max(numbers) + 1)
    ]
    assert [len(shard) for shard in shards[:-1]] == [size] * (len(shards) - 1)
    begun = [{(cell.persona, cell.condition.wording) for cell in shard} for shard in shards]
    assert sum(map(len, begun)) <= personas * wordings + len(shards) - 1  # each border adds one at most


def test_with_one_wording_the_shards_are_runs_of_the_plan() -> None:
    assert shard_numbers(cells(2, 5, rotations=3), 4) == [k // 4 for k in range(30)]


def test_wordings_do_not_meet_in_a_shard_where_they_fill_their_own() -> None:
    numbers = shard_numbers(cells(2, 4, wordings=3), 4)
    assert numbers == [w + 3 * p for p, _, w in product(range(2), range(4), range(3))]


def test_rows_that_are_added_up_come_one_after_the_other_and_beginnings_stay_together() -> None:
    found = cells(2, 12, rotations=2)
    groups = [f"block {int(cell.case[1:]) % 3}" for cell in found]
    numbers = shard_numbers(found, 8, groups)
    sums = {(n, cell.persona, cell.condition, g) for n, cell, g in zip(numbers, found, groups, strict=True)}
    assert len(sums) == 2 * 2 * 3  # of four cases each: none is cut
    plain = shard_numbers(found, 8)
    assert len({(n, c.persona, c.condition, g) for n, c, g in zip(plain, found, groups, strict=True)}) > len(sums)
    assert len({(n, cell.persona) for n, cell in zip(numbers, found, strict=True)}) == 6
