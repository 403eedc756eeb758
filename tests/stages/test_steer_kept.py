"""Label reads of a comparison are kept part by part: an interrupted one goes on, a changed one is read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe.models.points import residual_points
from probe.stages import steer_sweeps
from probe.stages.interrupts import Interrupted
from probe.stages.steer import _label_reads, kept_reads
from probe.stages.steer_bench import Bench
from probe.stages.steer_kept import KeptReads
from probe.stages.steer_reads import SweepOrder
from probe.stages.steer_scene import SteerRequest
from probe.values import Intervention
from tests.stages.steered_organism import organism_bench

CASES = 40


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    request = SteerRequest(layers=(3,), n_random=2, text_cases=0, personas=("ed_physician",))
    return organism_bench(tmp_path_factory.mktemp("kept"), request, cases=CASES)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """How many reads the model makes, and how many it may make before Ctrl-C."""
    told: dict[str, float] = {"reads": 0, "until": np.inf}
    sweep = steer_sweeps.sweep

    def counting(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for read in sweep(*args, **kwargs):
            told["reads"] += 1
            if told["reads"] > told["until"]:
                raise KeyboardInterrupt
            yield read

    monkeypatch.setattr(steer_sweeps, "sweep", counting)
    yield told


def order_of(bench: Bench, arms: list[tuple[Intervention, ...]]) -> SweepOrder:
    rows = bench.rows(bench.base, bench.scene.study.cases[:CASES])
    return SweepOrder(rows, [arms] * len(rows))


def push(bench: Bench, strength: float) -> tuple[Intervention, ...]:
    return (bench.own("ed_physician", 3).edit(strength, "prompt_end"),)


def test_an_interrupted_comparison_goes_on_where_it_was_and_says_the_same(
    bench: Bench, counted: dict[str, float], tmp_path: Path
) -> None:
    def compared(folder: str) -> Any:
        results, notes, _ = _label_reads(bench.scene, kept_reads(bench.scene, tmp_path / folder), fresh=False)
        assert not notes
        return results["ed_physician"]

    whole = compared("whole")
    n_reads, counted["reads"] = counted["reads"], 0
    counted["until"] = 0.6 * n_reads
    with pytest.raises(Interrupted, match="interrupted-steer-reads; run the same command again") as told:
        compared("interrupted")
    assert told.value.exit_status == 130
    counted |= {"reads": 0, "until": np.inf}
    continued = compared("interrupted")
    assert 0.3 * n_reads < counted["reads"] < 0.8 * n_reads
    counted["reads"] = 0
    again = compared("interrupted")
    assert counted["reads"] < 0.1 * n_reads  # the residuals of the distances, at every point, are not kept
    for other in (continued, again):
        for one, same in zip(whole.comparison.arms, other.comparison.arms, strict=True):
            assert np.array_equal(one.logp, same.logp)
            assert np.array_equal(one.strength, same.strength, equal_nan=True)
        assert other.response.equals(whole.response) and other.rules.equals(whole.rules)


def test_reads_of_other_rows_arms_points_or_models_are_not_taken_over(
    bench: Bench, counted: dict[str, float], tmp_path: Path
) -> None:
    kept = KeptReads(tmp_path, "this model")
    order = order_of(bench, [push(bench, 0.1)])

    def n_read(asked: SweepOrder, folder: KeptReads = kept) -> float:
        counted["reads"] = 0
        steer_sweeps.read_sweep(bench.backend, asked, kept=folder)
        return counted["reads"]

    assert n_read(order) == 2 * CASES and n_read(order) == 0
    first, *others = order.rows
    masked = replace(first, persona_tokens=(1, 2))
    for changed in (
        order_of(bench, [push(bench, 0.1001)]),
        order_of(bench, [push(bench, 0.1), ()]),
        replace(order, points=residual_points((3,))),
        replace(order, against=[order.rows]),
    ):
        assert n_read(changed) >= 2 * CASES
    assert 0 < n_read(replace(order, rows=[masked, *others])) < 2 * CASES  # the part of that row alone
    assert n_read(order, KeptReads(tmp_path, "another model")) == 2 * CASES
    assert n_read(order) == 0
    kept.clear()
    assert n_read(order) == 2 * CASES


def test_a_damaged_part_is_read_again_and_an_undamaged_one_is_not(
    bench: Bench, counted: dict[str, float], tmp_path: Path
) -> None:
    kept, order = KeptReads(tmp_path, "this model"), order_of(bench, [push(bench, 0.1)])
    before = steer_sweeps.read_sweep(bench.backend, order, kept=kept)
    file = next(tmp_path.glob("*.reads"))
    for damage in (lambda text: text[:-1] + bytes([text[-1] ^ 1]), lambda text: text[:20], lambda _: b""):
        file.write_bytes(damage(file.read_bytes()))
        counted["reads"] = 0
        after = steer_sweeps.read_sweep(bench.backend, order, kept=kept)
        assert 0 < counted["reads"] < 2 * CASES
        assert np.array_equal(before.logp, after.logp) and np.array_equal(before.dose, after.dose)
