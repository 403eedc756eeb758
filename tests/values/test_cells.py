"""A cell's id is its persona, its case and what its condition changes; a field added later changes no old id."""

from __future__ import annotations

from dataclasses import fields, make_dataclass

import pytest

from probe.values import Cell, Condition, sha256_of

CHANGES = {
    "wording": 1,
    "instruction": 2,
    "rotation": 1,
    "placement": "user",
    "prefix": "The answer is",
    "seed": 3,
    "intervention": "ab12",
    "edition": "0f0f0f0f",
    "given": "expert",
}


def test_every_field_of_a_condition_tells_two_cells_apart() -> None:
    assert {known.name for known in fields(Condition)} == set(CHANGES)
    cells = [Cell("nurse", "case", Condition(**{name: value})) for name, value in CHANGES.items()]
    assert len({Cell("nurse", "case", Condition()).row_id, *(cell.row_id for cell in cells)}) == len(CHANGES) + 1
    for cell, (name, value) in zip(cells, CHANGES.items(), strict=True):
        assert cell.condition.changed == {name: value}
        assert str(value) in cell.condition.name


def test_the_id_is_what_the_format_says() -> None:
    cell = Cell("nurse", "case", Condition(seed=3))
    named = {"persona": "nurse", "case": "case", "condition": {"seed": 3}}
    assert cell.row_id == sha256_of(named)[:32]
    assert Cell("nurse", "case", Condition()).row_id == sha256_of({**named, "condition": {}})[:32]


def test_a_field_that_a_later_version_adds_leaves_old_ids_as_they_are() -> None:
    later = make_dataclass("Later", [("shade", str, "")], bases=(Condition,), frozen=True)
    for given in ({}, {"seed": 3}):
        assert Cell("nurse", "case", later(**given)).row_id == Cell("nurse", "case", Condition(**given)).row_id
    assert Cell("nurse", "case", later(shade="x")).row_id != Cell("nurse", "case", Condition()).row_id


@pytest.mark.parametrize(("one", "other"), [(("a", "b/c"), ("a/b", "c")), (("", "ab"), ("a", "b"))])
def test_names_that_join_to_the_same_text_are_different_cells(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert Cell(*one, Condition()).row_id != Cell(*other, Condition()).row_id
