"""A study as the numbers that its size depends on. Counts tokens as the pass would feed them; loads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from probe.stages.resolution import BYTES
from probe.values.blocks import block_of

if TYPE_CHECKING:
    from probe.capture import Job, PassInput
    from probe.models.footprint import Footprint
    from probe.stages.preparation import Preparation

_COUNTED = 16
"""Shards whose tokens are counted, evenly over the plan; the rest is taken to be like them."""

_FIRST_CHARACTERS = 4.0
"""Bytes of text of a token, for a tokenizer of which nothing is known."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a row, on average. ``fed``: prompt tokens that are fed for it, pads too, and its part of what rows
    share; ``pairs``: two tokens of which one attends to the other meanwhile; ``group``: rows that are fed at once;
    ``prompt``: all tokens of the prompt; ``new``: those of the answer, that are fed one by one."""

    prompt: float
    fed: float
    pairs: float
    group: float
    new: float


@dataclass(frozen=True)
class Outline:
    """What a study comes to in rows and bytes.

    ``activations``: bytes of a row's activations at all ``positions``; ``tensors``: how many arrays hold them;
    ``width``: of the widest stream. ``sites``: places where labels are read; ``labels``: how many there are.
    ``itemsize`` and ``stored_itemsize``: bytes of a value as it is computed and as it is kept. ``shard_rows`` and
    ``batch``: rows of a shard, and rows that run together. ``sets`` sums of ``set_bytes`` are what ``keep: moments``
    would keep in place of the rows' activations; where it does (``moments``), those of each shard.
    """

    footprint: Footprint
    blocks: int
    itemsize: int
    stored_itemsize: int
    width: int
    activations: int
    tensors: int
    positions: int
    sites: int
    labels: int
    rows: int
    shard_rows: int
    batch: int
    tokens: Tokens
    sets: int
    set_bytes: int
    moments: bool = False

    @property
    def shards(self) -> int:
        """Files of the store that hold rows."""
        return -(-self.rows // max(self.shard_rows, 1))


def outline_of(preparation: Preparation, new: float | None = None) -> Outline:
    """The outline of a study that is prepared; its answers take ``new`` tokens, by default all they may."""
    resolved, jobs = preparation.resolved, preparation.cells.jobs
    study = resolved.study
    rows = len(preparation.cells.rows)
    return Outline(
        footprint=resolved.footprint,
        blocks=resolved.shape.n_layers,
        itemsize=BYTES[resolved.compute_dtype],
        stored_itemsize=BYTES[resolved.stored_dtype],
        width=max(resolved.widths.values(), default=resolved.shape.d_model),
        activations=resolved.row_bytes,
        tensors=len(resolved.points) * len(study.capture.positions),
        positions=len(study.capture.positions),
        sites=len(study.labels.sites),
        labels=len(study.task.option_ids),
        rows=rows,
        shard_rows=-(-rows // max(preparation.n_shards, 1)),
        batch=resolved.batch_size,
        tokens=_tokens(preparation, jobs, study.generation.max_new_tokens if new is None else new),
        sets=_sets(preparation),
        set_bytes=set_bytes(
            [resolved.widths[point.stream] for point in resolved.points],
            len(study.capture.positions),
            study.capture.covariance,
        ),
        moments=study.capture.keep == "moments",
    )


def set_bytes(widths: Sequence[int], positions: int, covariance: int) -> int:
    """Bytes of the sums over one set of rows (:mod:`probe.store.sums`), for arrays of these widths at each position: a
    mean and squares, the products of ``covariance`` dimensions, and their powers, float32."""
    axes = [min(covariance, width) for width in widths]
    second = [k * (k + 1) // 2 + k + 1 if k else 0 for k in axes]
    return 4 * positions * sum(2 * width + more for width, more in zip(widths, second, strict=True))


def moments_bytes(outline: Outline) -> int:
    """What all activations take as moments; a set that lies in two shards is summed twice."""
    cut = 0 if outline.moments else outline.shards
    return min(outline.sets + cut, outline.rows) * outline.set_bytes


def _sets(preparation: Preparation) -> int:
    """Different (persona, condition, stratum, block of case families); where their sums are kept, by shard."""
    study = preparation.resolved.study
    if study.capture.keep == "moments":
        jobs = preparation.cells.jobs
        return len({(job.row.shard, job.row.cell.persona, job.row.cell.condition, job.group) for job in jobs})
    groups = {case.id: (case.stratum, block_of(case.family or case.id, study.split_seed)) for case in study.cases}
    cells = [row.cell for row in preparation.cells.rows]
    return len({(cell.persona, cell.condition, groups.get(cell.case)) for cell in cells})


def _tokens(preparation: Preparation, jobs: Sequence[Job], new: float) -> Tokens:
    """Counted over some of the shards, cut into shared beginnings and groups as the pass would cut them."""
    from probe.capture.shards import pass_input

    shards = [
        list(group) for _, group in groupby(sorted(jobs, key=lambda job: job.row.shard), lambda job: job.row.shard)
    ]
    step = max(len(shards) // _COUNTED, 1)
    counted = [_Counted.of(preparation, [pass_input(job) for job in shard]) for shard in shards[::step][:_COUNTED]]
    rows = max(sum(each.rows for each in counted), 1)
    given = sum(job.given is not None for job in jobs) / max(len(jobs), 1)
    return Tokens(
        prompt=sum(each.prompt for each in counted) / rows,
        fed=sum(each.fed for each in counted) / rows,
        pairs=sum(each.pairs for each in counted) / rows,
        group=rows / max(sum(each.groups for each in counted), 1),
        new=(1 - given) * new,
    )


@dataclass(frozen=True)
class _Counted:
    """Sums over the rows of a shard."""

    rows: int
    prompt: int
    fed: int
    pairs: int
    groups: int

    @classmethod
    def of(cls, preparation: Preparation, rows: Sequence[PassInput]) -> _Counted:
        from probe.capture import PassSettings
        from probe.capture.prefixes import share_prefixes
        from probe.capture.waiting import Waiting

        resolved = preparation.resolved
        settings = PassSettings((), resolved.study.capture.positions, resolved.study.generation.max_new_tokens)
        clusters = share_prefixes(rows, settings)
        fed = sum(cluster.n_prefix for cluster in clusters)
        pairs = sum(cluster.n_prefix**2 for cluster in clusters)
        groups = sum(bool(cluster.n_prefix) for cluster in clusters)
        waiting = Waiting(rows, clusters, resolved.device, equal=resolved.footprint.recurrent)
        while waiting:
            group = waiting.take(resolved.batch_size)
            longest = rows[group.rows[0]].length
            width = longest - group.cluster.n_prefix
            beside = [sum(len(fork.token_ids) for fork in rows[i].forks) + len(rows[i].given or ()) for i in group.rows]
            fed += width * len(group.rows) + sum(beside)
            pairs += width * longest * len(group.rows) + sum(beside) * longest
            groups += 1 + any(beside)
        return cls(len(rows), sum(row.length for row in rows), fed, pairs, groups)


@dataclass(frozen=True)
class RowBytes:
    """Bytes of one row on disk, by what they hold; ``beside`` are checksums, the row table and the shard's header, and
    ``plan`` the row's line of the plan without the text of prompts."""

    activations: int
    labels: int
    tokens: int
    beside: int
    plan: int

    @property
    def stored(self) -> int:
        """In the shards."""
        return self.activations + self.labels + self.tokens + self.beside


_TOP = 5
_VARIANTS = 2
_FIXED_TENSORS = 15
_OF_A_TENSOR = 360
"""Bytes of a shard's header for a tensor and its checksums: names, shapes, places, sha256."""

_ROW_TABLE = 500
"""Bytes of a row's entry: ids, hashes, status, what the parser found."""

_PLANNED = 420


def row_bytes(outline: Outline, text: float = _FIRST_CHARACTERS) -> RowBytes:
    """What a row takes if every site is there, for answers of as many tokens as the outline says.

    The sizes of the arrays follow docs/FORMAT.md; those of the row table and the plan were measured on stores.
    ``text`` are the bytes of text of a token.
    """
    each = 4 * outline.labels + 8 + 8 * _TOP + 8 * _VARIANTS * outline.labels  # sums, mass, entropy, top, variants
    tensors = outline.tensors + _FIXED_TENSORS
    header = _OF_A_TENSOR * tensors / max(min(outline.shard_rows, outline.rows), 1)
    new, prompt = outline.tokens.new, outline.tokens.prompt
    return RowBytes(
        activations=round(moments_bytes(outline) / max(outline.rows, 1)) if outline.moments else outline.activations,
        labels=outline.sites * each,
        tokens=round(4 * (prompt + new) + text * new),
        beside=round(8 * tensors + 8 * outline.positions + 24 + _ROW_TABLE + header),
        plan=_PLANNED,
    )
