"""Rows that begin alike share what they begin with: as much as they may, and never a token more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.capture.batching import PassInput, PassSettings
from probe.capture.prefixes import WORTH, Cluster, share_prefixes
from probe.prompts import LabelTokens
from probe.values import Intervention

LABELS = LabelTokens(("A",), ((1,),))
PLAIN = PassSettings((), ("prompt_end",), 4)
WITH_CASE = PassSettings((), ("prompt_end", "case_mean"), 4)


def row(*parts: list[int], **more: object) -> PassInput:
    ids = tuple(token for part in parts for token in part)
    return replace(PassInput(ids, None, (len(parts[0]), len(ids) - 1), LABELS), **more)  # type: ignore[arg-type]


def tokens(rng: np.random.Generator, n: int) -> list[int]:
    return [int(token) for token in rng.integers(0, 50, n)]


def fed(rows: list[PassInput], clusters: list[Cluster]) -> int:
    """Tokens that are fed in all, with each shared prefix once."""
    return sum(each.n_prefix + sum(rows[i].length - each.n_prefix for i in each.rows) for each in clusters)


def personas_and_cases(seed: int, n_personas: int, n_cases: int, seeds: int = 1) -> list[PassInput]:
    rng = np.random.default_rng(seed)
    head, cases = tokens(rng, 5), [tokens(rng, int(rng.integers(3, 30))) for _ in range(n_cases)]
    texts = [head + tokens(rng, int(rng.integers(20, 60))) for _ in range(n_personas)]
    return [row(text, case, key=(f"{k}", s)) for text in texts for k, case in enumerate(cases) for s in range(seeds)]


@pytest.mark.parametrize("settings", [PLAIN, WITH_CASE])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_cluster_and_begins_with_its_prefix(seed: int, settings: PassSettings) -> None:
    rows = personas_and_cases(seed, 1 + seed, 1 + 3 * seed, seeds=1 + seed % 2)
    clusters = share_prefixes(rows, settings)
    assert sorted(index for each in clusters for index in each.rows) == list(range(len(rows)))
    for each in clusters:
        own = [rows[i] for i in each.rows]
        assert len({one.token_ids[: each.n_prefix] for one in own}) == 1
        assert all(each.n_prefix < one.length for one in own)
        assert [one.length for one in own] == sorted((one.length for one in own), reverse=True)
        if settings is WITH_CASE:
            assert all(one.case_tokens is not None and each.n_prefix <= one.case_tokens[0] for one in own)
    assert fed(rows, clusters) <= sum(one.length for one in rows)


def test_each_personas_text_is_fed_once_and_what_all_personas_share_splits_nothing() -> None:
    rows = personas_and_cases(0, 3, 12)
    assert sorted(len(each.rows) for each in share_prefixes(rows, WITH_CASE)) == [12, 12, 12]
    case_starts = {one.case_tokens[0] for one in rows if one.case_tokens is not None}
    assert {each.n_prefix for each in share_prefixes(rows, WITH_CASE)} == case_starts


def test_draws_of_one_prompt_share_all_of_it_but_its_last_token() -> None:
    rows = personas_and_cases(0, 1, 3, seeds=20)
    for each in share_prefixes(rows, PLAIN):
        assert {each.n_prefix} == {rows[i].length - 1 for i in each.rows}


def test_prompts_that_each_go_on_from_the_one_before_are_no_deeper_than_python_allows() -> None:
    rows = [row([7] * n) for n in range(1, 1500)]
    clusters = share_prefixes(rows, PLAIN)
    assert sorted(index for each in clusters for index in each.rows) == list(range(len(rows)))
    assert fed(rows, clusters) < 0.6 * sum(one.length for one in rows)


def test_nothing_is_shared_where_it_does_not_pay() -> None:
    rng = np.random.default_rng(0)
    text = tokens(rng, WORTH - 1)
    two = [row(text, [60 + k, 70]) for k in range(2)]
    assert [each.n_prefix for each in share_prefixes(two, PLAIN)] == [0]
    three = [row(text, [60 + k, 70]) for k in range(3)]
    assert [each.n_prefix for each in share_prefixes(three, PLAIN)] == [WORTH - 1]


def test_an_edit_of_the_prefix_makes_it_another_and_one_of_the_answer_does_not() -> None:
    rows = personas_and_cases(0, 1, 30)
    vector = np.ones(4, dtype=np.float32)
    for position, n_clusters in (("all", 2), ("persona", 2), ("response", 1), ("prompt_end", 1)):
        edited = (Intervention(1, "add", vector=vector, position=position),)
        mixed = [replace(one, interventions=edited) if i % 2 else one for i, one in enumerate(rows)]
        assert len(share_prefixes(mixed, PLAIN)) == n_clusters, position


def test_an_edit_of_the_case_ends_the_prefix_before_it() -> None:
    edited = (Intervention(1, "add", vector=np.ones(4, dtype=np.float32), position="case"),)
    rows = [row(list(range(40)), [7, 8, 9] + [k] * 4, interventions=edited) for k in range(9)]
    assert [each.n_prefix for each in share_prefixes(rows, PLAIN)] == [40]
    assert [each.n_prefix for each in share_prefixes([replace(one, interventions=()) for one in rows], PLAIN)] == [43]
