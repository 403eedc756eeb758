"""Shards one after the other in this process. Knows progress and interruption; knows no model and no store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

Shard = TypeVar("Shard")


def run_local(
    shards: Sequence[Shard],
    work: Callable[[Shard, Callable[[int], None]], None],
    *,
    total: int,
    done: int,
    unit: str = "cell",
) -> None:
    """Call ``work(shard, on_rows)`` for each shard in order, under one bar: cells done, cells per second, time left.

    ``work`` must itself see to it that its result becomes durable, even where an interrupt or an error ends the loop
    after it has returned; one inside a shard loses that shard only. ``done`` rows count as done already.
    """
    with progress(total, done, unit) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        for shard in shards:
            work(shard, advance)


def progress(total: int, done: int, unit: str = "cell") -> tqdm[Any]:
    """The bar of a run: rows done, rows per second, time left."""
    return tqdm(total=total, initial=done, unit=unit, desc="capture", dynamic_ncols=True, smoothing=0.1)
