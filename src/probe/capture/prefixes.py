"""Which rows share the tokens they begin with. Knows token ids; knows no cache and no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from probe.capture.batching import PassInput, PassSettings

WORTH = 128
"""A prefix is run once if that spares at least so many tokens: a forward of its own is not free."""

_IN_PREFIX = ("all", "prompt", "persona", "persona_end")


@dataclass(frozen=True)
class Cluster:
    """Rows that begin with the same ``n_prefix`` tokens, which are fed once: indices, the longest row first."""

    n_prefix: int
    rows: tuple[int, ...]


def share_prefixes(rows: Sequence[PassInput], settings: PassSettings) -> list[Cluster]:
    """Cut the rows into clusters such that as few tokens as possible are fed twice.

    A prefix ends before the last token of every row, and before the case where that is read or edited. Rows with other
    interventions on the prefix, or another end of the persona, have a prefix of their own.
    """
    limits = [_limit(row, settings) for row in rows]
    clusters: list[Cluster] = []
    alone: list[int] = []
    for _, same in groupby(sorted(range(len(rows)), key=lambda i: _kind(rows[i])), key=lambda i: _kind(rows[i])):
        ordered = sorted(same, key=lambda i: rows[i].token_ids)
        common = [_common(rows[a].token_ids, rows[b].token_ids) for a, b in pairwise(ordered)]
        for first, last, depth in _split(common, [limits[i] for i in ordered]):
            members = ordered[first:last]
            if depth * (len(members) - 1) >= WORTH:
                clusters.append(Cluster(depth, _longest_first(rows, members)))
            else:
                alone.extend(members)
    if alone:
        clusters.append(Cluster(0, _longest_first(rows, alone)))
    return clusters


def unshared(rows: Sequence[PassInput]) -> Cluster:
    """All rows as one cluster that shares nothing."""
    return Cluster(0, _longest_first(rows, list(range(len(rows)))))


def _kind(row: PassInput) -> tuple[tuple[str, ...], tuple[int, int], int]:
    acting = tuple(each.sha256 for each in row.interventions if each.position in _IN_PREFIX)
    return acting, row.persona_tokens or (-1, -1), -1 if row.persona_end is None else row.persona_end


def _limit(row: PassInput, settings: PassSettings) -> int:
    """The longest prefix that a row may share with others."""
    needs_case = "case_mean" in settings.positions or any(each.position == "case" for each in row.interventions)
    if needs_case and row.case_tokens is not None:
        return min(row.length - 1, row.case_tokens[0])
    return row.length - 1


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((k for k, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _split(common: list[int], limits: list[int]) -> list[tuple[int, int, int]]:
    """``(first, last, depth)`` of the clusters of rows in lexicographic order.

    ``common[i]`` tokens are shared by rows i and i + 1. Rows stay together unless their parts spare more tokens. The
    parts of parts are kept on a stack of our own: where each row begins with the one before, they go as deep as rows.
    """
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    todo = [(0, len(limits))]
    while todo:
        first, last = todo[-1]
        shared = min(common[first : last - 1], default=0)
        edges = [first, *(i + 1 for i in range(first, last - 1) if common[i] == shared), last]
        parts = [] if len(edges) - 1 == last - first else list(pairwise(edges))
        unknown = [part for part in parts if part not in found]
        if unknown:
            todo.extend(unknown)
            continue
        whole = [(first, last, min(shared, *limits[first:last]))]
        split = [each for part in parts for each in found[part]]
        found[first, last] = split if _spared(split) > _spared(whole) else whole
        todo.pop()
    return found[0, len(limits)]


def _spared(clusters: list[tuple[int, int, int]]) -> int:
    return sum(depth * (last - first - 1) for first, last, depth in clusters)


def _longest_first(rows: Sequence[PassInput], members: list[int]) -> tuple[int, ...]:
    return tuple(sorted(members, key=lambda i: (-rows[i].length, i)))
