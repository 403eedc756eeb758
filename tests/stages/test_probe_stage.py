"""Probes of a small store: what was planted there is found there, read-only, without torch, and told in plain words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe.stages.probes import Asked, asked_of, probe_store, run_probes, transfer
from probe.store import StoreLock, open_store, open_writer
from probe.values import ProbeError
from tests.store import store_samples as samples
from tests.test_house import WITHOUT_TORCH

STATED = Asked(targets=("stated",), permutations=19)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three personas on 36 cases; at layer 1 of the prompt's end the first feature says whether the answer is home."""
    path = tmp_path_factory.mktemp("probes") / "store"
    plan = samples.plan(("nurse", "none", "clerk"), 36, per_shard=12)
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            writer.commit([told(samples.record(row)) for row in plan.rows if row.shard == shard])
    return path


def told(record):
    resid = {name: array.copy() for name, array in record.resid.items()}
    resid["prompt_end"][1, 0] += 400 * (record.label == "home")
    return replace(record, resid=resid)


def test_what_was_planted_in_a_store_is_found_at_its_layer_and_position(planted: Path) -> None:
    before = samples.content(planted)
    found = probe_store(open_store(planted), STATED).query("method == 'ridge'")
    best = found.loc[found["value"].idxmax()]
    assert (best["layer"], best["position"]) == (1, "prompt_end") and best["p_adjusted"] == 0.05
    assert (found.loc[found["layer"] != 1, "p_adjusted"] > 0.05).all()
    assert (found["n"] == 36).all() and (found["families"] == 18).all()
    assert samples.content(planted) == before


def test_the_command_tells_the_best_layer_and_writes_tables_and_a_figure(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_probes(planted, replace(STATED, positions=("prompt_end",)), out=tmp_path)
    shown = capsys.readouterr().out
    assert "stated" in shown and "max-T p" in shown and "at least .050 with so many permutations" in shown
    table = pd.read_csv(tmp_path / "probes.csv")
    assert set(table["position"]) == {"prompt_end"} and {"ridge", "baseline: outputs"} <= set(table["method"])
    assert (tmp_path / "probes.png").stat().st_size > 10_000
    moved = pd.read_csv(tmp_path / "probes_transfer.csv")
    assert set(moved["fitted_on"]) == {"nurse", "none", "clerk", "all others"}


def test_a_second_run_gives_the_same_numbers_and_another_seed_other_permutations(planted: Path) -> None:
    one, two, other = (probe_store(open_store(planted), STATED, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, two)
    assert (one["value"].dropna() == other["value"].dropna()).mean() > 0.9  # all but the random features
    assert not one["null_mean"].equals(other["null_mean"])


def test_fewer_families_than_folds_are_said_and_two_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = samples.write_store(tmp_path / "few", plan_=samples.plan(n_cases=6))
    probe_store(open_store(few), replace(STATED, positions=("prompt_end",), layers=(1,)))
    assert "3 case families are fewer than 5 folds" in capsys.readouterr().out
    two = samples.write_store(tmp_path / "two", plan_=samples.plan(n_cases=4))
    with pytest.raises(ProbeError, match="2 are too few"):
        transfer(open_store(two))


def test_unknown_targets_positions_and_layers_are_refused(planted: Path) -> None:
    store = open_store(planted)
    for asked, words in (
        (Asked(targets=("statd",)), "'stated'"),
        (Asked(positions=("prompt_nd",)), "'prompt_end'"),
        (replace(STATED, layers=(9,)), "the layer 9 was not captured"),
    ):
        with pytest.raises(ProbeError, match=words):
            probe_store(store, asked)
    with pytest.raises(ProbeError, match="--layers are residual points"):
        asked_of(None, None, "1,x", permutations=9, folds=5, families_move=False)
    given = asked_of("stated, latent", None, "0,2", permutations=9, folds=4, families_move=True)
    assert given == Asked(("stated", "latent"), None, (0, 2), 9, 4, True)


def test_the_command_runs_where_torch_is_not_importable(planted: Path, tmp_path: Path) -> None:
    code = WITHOUT_TORCH + (
        "from probe.cli import app\n"
        f"app(['probes', {str(planted)!r}, '--targets', 'stated', '--layers', '1', '--permutations', '9', "
        f"'--out', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(pd.read_csv(tmp_path / "probes.csv").query("method == 'ridge'")["value"]).all()
