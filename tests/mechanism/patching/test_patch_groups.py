"""Tokens are grouped by their role, and only what corresponds is aligned."""

from __future__ import annotations

from typing import Any

import pytest

from probe.mechanism.patching.grid import (
    HEAD_OUT,
    KEYS_VALUES,
    MLP_OUT,
    NONSENSE,
    OTHER_CASE,
    RESID,
    Grid,
    Place,
    by_construction,
    grid_of,
)
from probe.mechanism.patching.groups import (
    ALL_TOKENS,
    ANSWER,
    CASE,
    GENERATED,
    INSTRUCTION,
    PERSONA,
    PROMPT_END,
    TEMPLATE,
    Layout,
    align,
)
from probe.values import ProbeError

# <s> P P P </s> I I C C C I </s> a
LATENT_RUN = Layout(13, persona=(1, 4), user=(5, 11), case=(7, 10))
STATED_RUN = Layout(13, persona=(1, 4), user=(5, 11), case=(7, 10), n_text=4)
IDS = (0, 11, 12, 13, 1, 21, 22, 31, 32, 33, 23, 1, 2)


def test_every_token_has_one_role() -> None:
    for layout in (LATENT_RUN, STATED_RUN):
        groups = layout.groups
        everything = groups.pop(ALL_TOKENS)
        assert sorted(token for tokens in groups.values() for token in tokens) == list(everything)
    assert STATED_RUN.groups[TEMPLATE] == (0, 4, 11)
    assert STATED_RUN.groups[INSTRUCTION] == (5, 6, 10)
    assert STATED_RUN.groups[CASE] == (7, 8, 9)
    assert STATED_RUN.groups[GENERATED] == (13, 14, 15)
    assert (STATED_RUN.groups[ANSWER], STATED_RUN.groups[PROMPT_END]) == ((16,), (12,))
    assert (LATENT_RUN.read_group, STATED_RUN.read_group) == (PROMPT_END, ANSWER)
    assert ANSWER not in LATENT_RUN.groups


def test_runs_that_differ_in_the_persona_alone_are_aligned_by_their_index() -> None:
    other = (*IDS[:1], 14, 15, 16, *IDS[4:])
    found = align(LATENT_RUN, LATENT_RUN, other, IDS)
    assert not found.absent
    assert all(donor == receiver for donor, receiver in found.pairs.values())


def test_a_run_without_a_persona_is_aligned_by_role_and_lacks_what_it_has_not() -> None:
    bare = Layout(10, persona=None, user=(2, 8), case=(4, 7))
    ids = (0, 1, *IDS[5:13])
    found = align(LATENT_RUN, bare, IDS, ids)
    assert found.pairs[CASE] == ((7, 8, 9), (4, 5, 6))
    assert found.pairs[PROMPT_END] == ((12,), (9,))
    assert set(found.absent) == {PERSONA, ALL_TOKENS}
    assert found.absent[PERSONA] == "3 tokens in the donor's run, 0 in the other"


def test_groups_of_other_tokens_or_another_number_are_absent_and_never_shifted() -> None:
    longer = Layout(14, persona=(1, 4), user=(5, 12), case=(7, 11))
    ids = (*IDS[:10], 34, *IDS[10:])
    another_case = align(longer, LATENT_RUN, ids, IDS, same_case=False)
    assert "4 tokens in the donor's run, 3" in another_case.absent[CASE]
    assert another_case.pairs[INSTRUCTION] == ((5, 6, 11), (5, 6, 10))
    same_length = (*IDS[:7], 41, 42, 43, *IDS[10:])
    assert align(LATENT_RUN, LATENT_RUN, same_length, IDS).absent == {
        CASE: "the tokens differ",
        ALL_TOKENS: "the runs' tokens do not stand at the same places",
    }
    assert CASE in align(LATENT_RUN, LATENT_RUN, same_length, IDS, same_case=False).pairs


def test_a_grid_has_each_cell_once_and_no_cell_that_nothing_could_read() -> None:
    grid = grid_of(3, None, None, n_heads=2)
    places = grid.places(tuple(STATED_RUN.groups), ANSWER)
    assert len(set(places)) == len(places)
    assert {place.layer for place in places if place.stream == RESID} == {0, 1, 2, 3}
    assert {place.layer for place in places if place.stream == MLP_OUT} == {0, 1, 2}
    assert not [place for place in places if place.stream == KEYS_VALUES and place.group == ANSWER]
    assert {place.group for place in places if place.stream == HEAD_OUT} == {ANSWER}
    assert {place.stream for place in places if place.group == ALL_TOKENS} == {RESID}
    assert grid_of(3, [2, 3], ["resid"]).places((CASE,), ANSWER) == (Place(RESID, 2, CASE), Place(RESID, 3, CASE))


def test_unknown_streams_and_points_are_refused_by_name() -> None:
    with pytest.raises(ProbeError, match=r"one of resid, keys_values.*mlp_out"):
        grid_of(3, None, ["mlp"])
    with pytest.raises(ProbeError, match="points 0 to 3; found"):
        grid_of(3, [4], None)


def test_what_a_cell_must_show_is_known_where_the_runs_differ_in_the_persona_alone() -> None:
    grid = Grid(3, (0, 1, 2, 3), (RESID, KEYS_VALUES, MLP_OUT))
    must = {
        place: by_construction(place, n_layers=3, read_group=PROMPT_END)
        for place in grid.places(tuple(LATENT_RUN.groups), PROMPT_END)
    }
    ones = {place for place, share in must.items() if share == 1}
    assert ones == {
        *(Place(RESID, point, ALL_TOKENS) for point in range(4)),
        Place(RESID, 3, PROMPT_END),
        Place(RESID, 0, PERSONA),
    }
    assert must[Place(RESID, 0, CASE)] == must[Place(RESID, 3, CASE)] == must[Place(MLP_OUT, 2, CASE)] == 0
    assert must[Place(KEYS_VALUES, 0, CASE)] == 0
    for finding in (Place(RESID, 1, CASE), Place(KEYS_VALUES, 2, PERSONA), Place(MLP_OUT, 2, PROMPT_END)):
        assert must[finding] is None


def test_a_control_or_a_base_run_of_another_length_leaves_more_to_be_found() -> None:
    def must(place: Place, **known: Any) -> float | None:
        return by_construction(place, n_layers=3, read_group=PROMPT_END, **known)

    embedded, last, above = Place(RESID, 0, CASE), Place(RESID, 3, PROMPT_END), Place(RESID, 3, CASE)
    assert [must(place, control=OTHER_CASE) for place in (embedded, last, above)] == [None, None, 0]
    assert [must(place, control=NONSENSE) for place in (embedded, last, above)] == [0, None, 0]
    # Positions may be part of the embeddings, and here they are others.
    assert [must(place, matched=False) for place in (embedded, last, above)] == [None, 1, 0]
