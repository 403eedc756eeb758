"""Recipes: what their hash covers, what they are on a case, and what of them is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from probe.values import (
    Cell,
    Condition,
    Direction,
    Gate,
    Intervention,
    PerCase,
    ProbeError,
    Recipe,
    RowRefused,
    Site,
    steering,
)

V = np.array([3.0, 4.0, 0.0], np.float32)
Q = np.eye(3, dtype=np.float32)[:2]
ADD = Intervention(2, "add", V, position="newest")
SET = Intervention(2, "set", basis=Q, coordinates=np.array([1.0, 2.0], np.float32))
OWN = PerCase(2, "set", {("a", 0, 0): np.array([1.0, 2.0], np.float32), ("a", 0, 1): np.zeros(2, np.float32)}, Q)
DIRECTION = Direction(Site(4, "prompt_end"), V, "nurse", "none", 9, frozenset({"f"}))


def cell(case: str = "a", **condition: int) -> Cell:
    return Cell("none", case, Condition(**condition))  # type: ignore[arg-type]  # fields by their names


CHANGES: dict[str, Callable[[Intervention], Intervention]] = {
    "layer": lambda one: replace(one, layer=3),
    "position": lambda one: replace(one, position="prompt"),
    "stream": lambda one: replace(one, stream="attn_out"),
    "operator": lambda one: replace(one, operator="patch"),
    "relative": lambda one: replace(one, relative=True),
    "vector": lambda one: replace(one, vector=V + np.float32(1e-6)),
    "gate": lambda one: replace(one, gate=Gate(V, 1.0)),
    "threshold": lambda one: replace(one, gate=Gate(V, 2.0)),
}


def test_the_hash_covers_all_that_changes_numbers_and_nothing_else() -> None:
    plain = Recipe("x", (ADD,))
    changed = [Recipe("x", (change(ADD),)).sha256 for change in CHANGES.values()]
    orders = [Recipe("x", (ADD, SET)).sha256, Recipe("x", (SET, ADD)).sha256]
    assert len({plain.sha256, *changed, *orders}) == 1 + len(CHANGES) + 2
    told = Recipe("another name", (ADD,), ("nurse",), frozenset({"f"}), {"strength": 1.0})
    assert told.sha256 == plain.sha256
    assert told != plain
    assert Recipe("x", (Intervention(2, "add", V.astype(np.float64), position="newest"),)) == plain


def test_the_hash_of_values_by_case_is_that_of_their_source_and_each_row_has_its_own() -> None:
    recipe = Recipe("x", (OWN,), source="store 1")
    more = replace(OWN, values={**OWN.values, ("b", 0, 0): np.ones(2, np.float32)})
    assert Recipe("x", (more,), source="store 1").sha256 == recipe.sha256  # more cases change no row that is there
    assert Recipe("x", (more,), source="store 1") != recipe
    assert Recipe("x", (OWN,), source="store 2").sha256 != recipe.sha256
    first, second = recipe.on(cell()), recipe.on(cell(rotation=1))
    np.testing.assert_array_equal(first[0].coordinates, [1.0, 2.0])
    assert first[0].sha256 == replace(SET, position="prompt_end").sha256 != second[0].sha256
    assert recipe.depends_on_case
    assert not Recipe("x", (ADD,)).depends_on_case


@pytest.mark.parametrize("missing", [cell("b"), cell(rotation=2), cell(instruction=1)], ids=str)
def test_a_cell_without_a_value_is_refused_and_one_with_a_value_is_not(missing: Cell) -> None:
    recipe = Recipe("donated", (OWN,))
    assert len(recipe.on(cell(wording=1, seed=3))) == 1
    with pytest.raises(RowRefused, match="'donated' takes a value from another run") as refused:
        recipe.on(missing)
    assert refused.value.kind == "NoDonor"


def test_a_vector_by_case_is_put_in_place_or_added() -> None:
    values = {("a", 0, 0): V}
    for operator in ("patch", "add"):
        (one,) = Recipe("x", (PerCase(1, operator, values),)).on(cell())
        assert (one.operator, one.layer, one.position) == (operator, 1, "prompt_end")
        np.testing.assert_array_equal(one.vector, V)


def test_a_strength_is_in_units_of_the_direction_of_the_residual_or_of_the_stream() -> None:
    found = {unit: steering(DIRECTION, 2.0, unit=unit) for unit in ("direction", "residual", "stream")}
    np.testing.assert_allclose(found["direction"].vector, 2 * V)
    np.testing.assert_allclose(found["stream"].vector, 2 * V / 5, rtol=1e-6)
    np.testing.assert_allclose(found["residual"].vector, 2 * V / 5, rtol=1e-6)
    assert [one.relative for one in found.values()] == [False, True, False]
    assert all((one.layer, one.position) == (4, "newest") for one in found.values())
    assert steering(DIRECTION, 1.0, layer=1, position="prompt").layer == 1
    with pytest.raises(ProbeError, match="unit of a strength is one of direction, residual, stream, found 'norm'"):
        steering(DIRECTION, 1.0, unit="norm")
    with pytest.raises(ProbeError, match="length 0"):
        steering(replace(DIRECTION, vector=0 * V), 1.0, unit="stream")


def test_a_plan_is_told_what_a_recipe_does() -> None:
    told = Recipe("x", (ADD, OWN), ("none",), frozenset({"f", "g"}), {"strength": 2}).told()
    assert told["edits"][0] == {"operator": "add", "stream": "resid", "layer": 2, "position": "newest", "norm": 5.0}
    assert (told["edits"][1]["cases"], told["edits"][1]["dimensions"]) == (2, 2)
    assert (told["fitted_on"], told["about"], told["personas"]) == (2, {"strength": 2}, ["none"])


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Intervention(1, "add", basis=Q), "'add' takes vector, found basis"),
        (lambda: Intervention(1, "cap", basis=Q), "'cap' takes basis and coordinates"),
        (lambda: Intervention(1, "ablate", basis=2 * Q), "orthonormal"),
        (lambda: Intervention(1, "add", V * np.nan), "finite"),
        (lambda: Intervention(1, "scale", V), "operator is one of add, ablate, set, cap, patch"),
        (lambda: Intervention(1, "add", V, position="end"), "acts at all, prompt"),
        (lambda: Intervention(1, "add", V, stream="mlp"), "acts on a stream"),
        (lambda: Intervention(1, "patch", V, relative=True), "only what is added"),
        (lambda: Intervention(1, "add", V, gate=Gate(np.ones(2), 0.0)), "3 wide, and its direction has 2"),
        (lambda: Gate(V, float("nan")), "finite"),
        (lambda: PerCase(1, "ablate", OWN.values, Q), "zero for every case"),
        (lambda: PerCase(1, "set", {}, Q), "has none"),
        (lambda: Recipe("x", ()), "edits nothing"),
        (lambda: Recipe(" ", (ADD,)), "needs a name"),
        (lambda: Recipe("x", (ADD,), about={"v": V}), "plain JSON"),
    ],
)
def test_what_no_operator_takes_is_refused(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(ProbeError, match=rule):
        make()
