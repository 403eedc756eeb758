"""The grid of a patching run: streams, layers and groups of tokens, and what is known of a cell beforehand. Knows names
and numbers; knows no activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probe.mechanism.patching.groups import ALL_TOKENS, ANSWER, CASE, GENERATED, PERSONA
from probe.values import ProbeError
from probe.values.nearest import nearest

RESID, KEYS_VALUES, ATTN_OUT, MLP_OUT, HEAD_OUT = "resid", "keys_values", "attn_out", "mlp_out", "head_out"

STREAMS = (RESID, KEYS_VALUES, ATTN_OUT, MLP_OUT, HEAD_OUT)
"""``resid``: the residual stream at a point. ``keys_values``: only what later tokens read of the group in one block.
``attn_out``, ``mlp_out``: what attention or the MLP of a block adds at the group. ``head_out``: one head of it."""

DENOISING, NOISING = "denoising", "noising"
"""The persona's activations put into the base run; the base's put into the persona's run."""

OTHER_CASE, OTHER_CASE_BASE, NONSENSE = "other case", "other case, base", "nonsense"
"""Controls, each put into the base run in place of the persona's activations: those of the same persona on another
case, the base's on that case, and those of a nonsense persona on the same case."""

CONTROLS = (OTHER_CASE, OTHER_CASE_BASE, NONSENSE)


@dataclass(frozen=True, order=True)
class Place:
    """One cell of the grid: a stream at a layer (residual point, or block), at a group of tokens; a head or -1."""

    stream: str
    layer: int
    group: str
    head: int = -1


@dataclass(frozen=True)
class Grid:
    """What is patched: streams, residual points (of the other streams: the blocks of these numbers), and heads where.

    ``head_groups`` are the groups at which single heads are patched; None for the token that is read alone.
    """

    n_layers: int
    points: tuple[int, ...]
    streams: tuple[str, ...] = STREAMS
    n_heads: int = 0
    head_groups: tuple[str, ...] | None = None

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks whose streams are patched."""
        return tuple(layer for layer in self.points if layer < self.n_layers)

    def places(self, groups: Sequence[str], read_group: str) -> tuple[Place, ...]:
        """The cells of one run. Nothing reads the keys and values of the last token but itself, so that cell is not
        there; ``all tokens`` are a control of the residual stream alone."""
        single = [group for group in groups if group != ALL_TOKENS]
        found = [Place(RESID, layer, group) for layer in self.points for group in groups if RESID in self.streams]
        for block in self.blocks:
            for group in single:
                if KEYS_VALUES in self.streams and group != read_group:
                    found.append(Place(KEYS_VALUES, block, group))
                found += [Place(stream, block, group) for stream in (ATTN_OUT, MLP_OUT) if stream in self.streams]
                heads = (read_group,) if self.head_groups is None else self.head_groups
                if HEAD_OUT in self.streams and group in heads:
                    found += [Place(HEAD_OUT, block, group, head) for head in range(self.n_heads)]
        return tuple(found)


def grid_of(
    n_layers: int, points: Sequence[int] | None, streams: Sequence[str] | None, *, n_heads: int | None = None
) -> Grid:
    """A grid over some residual points (None: all) and streams (None: all), checked.

    Raises:
        ProbeError: a stream or a point is not there.
    """
    chosen = STREAMS if streams is None else tuple(dict.fromkeys(streams))
    for name in chosen:
        if name not in STREAMS:
            raise ProbeError(f"a patched stream is one of {', '.join(STREAMS)}. {nearest(name, STREAMS, 'stream')}")
    at = tuple(range(n_layers + 1)) if points is None else tuple(sorted(set(points)))
    if not at or at[0] < 0 or at[-1] > n_layers:
        raise ProbeError(
            f"this model has residual points 0 to {n_layers}; found {list(points or ())}; name some of them"
        )
    return Grid(n_layers, at, chosen, n_heads or 0)


def by_construction(
    place: Place, *, n_layers: int, read_group: str, control: str = "", matched: bool = True
) -> float | None:
    """The share of the donor's effect that a cell must show whatever the model does, None where it is a finding.

    Where the two runs differ in the persona's tokens alone (``matched``), its embeddings, or every token at any point,
    bring all of it, and embeddings of other tokens, with the keys and values that the first block makes of them, bring
    none. At the last point, and of what the last block adds, only the token that is read counts. A control's donor is
    another run: what must be all of that run's effect is a finding, and another case has other embeddings.
    """
    share = _must(place, n_layers, read_group, matched=matched)
    if control and share == 1:
        return None
    other = control in (OTHER_CASE, OTHER_CASE_BASE) and place.group in (CASE, GENERATED, ANSWER)
    return None if other and place.layer == 0 else share


def _must(place: Place, n_layers: int, read_group: str, *, matched: bool) -> float | None:
    if place.stream == RESID:
        if place.group == ALL_TOKENS or place == Place(RESID, n_layers, read_group):
            return 1.0
        if place.layer == 0 and matched:
            return 1.0 if place.group == PERSONA else 0.0
        return 0.0 if place.layer == n_layers else None
    if place.stream == KEYS_VALUES:
        return 0.0 if place.layer == 0 and matched and place.group != PERSONA else None
    return 0.0 if place.layer == n_layers - 1 and place.group != read_group else None
