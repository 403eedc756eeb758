"""The commands that bring activations into a store and out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from probe.cli import app
from probe.store import UnknownName, open_store
from probe.values import ProbeError


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the store `mine` was imported by the command line."""
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(
        {
            "case": ["a", "b", "c", "a", "b", "c"],
            "persona": ["=nurse"] * 3 + ["none"] * 3,
            "target": ["low", "high", "low"] * 2,
            "y_gen": ["low", "high", "high", "low", "low", "low"],
            "mood": ["fine"] * 6,
        }
    )
    table.to_csv("table.csv", index=False)
    (tmp_path / "acts").mkdir()
    for point in (0, 1):
        array = np.random.default_rng(point).standard_normal((6, 4)).astype(np.float32)
        np.save(tmp_path / "acts" / f"resid.prompt_end.L{point:02d}.npy", array)
    told = invoke(
        *("store", "import", "table.csv", "--activations", "acts", "--store", "mine", "--model", "some/model"),
        *("--options", "low,high", "--high-risk", "high"),
    )
    assert "imported 6 rows into mine" in told
    assert "left out: mood" in told
    return tmp_path


def test_an_imported_store_is_told_measured_and_verified_like_any_other(imported: Path) -> None:
    assert "some/model" in invoke("store", "ls", "mine")
    assert "sound" in invoke("store", "verify", "mine")
    invoke("metrics", "mine", "--base", "none", "--out", "found")
    invoke("directions", "mine", "--base", "none", "--out", "found")
    assert {"metrics.csv", "shift.csv"} <= {path.name for path in (imported / "found").iterdir()}


def test_an_export_takes_the_rows_layers_and_positions_that_were_asked_for(imported: Path) -> None:
    told = invoke(
        *("store", "export", "mine", "--to", "numpy", "--out", "out", "--persona", "=nurse", "--layer", "1"),
        *("--position", "prompt_end", "--where", "y_gen == 'high'"),
    )
    assert "wrote 2 rows to out" in told
    assert sorted(path.name for path in (imported / "out").glob("*.npy")) == ["resid.prompt_end.L01.npy"]
    expected = np.load(imported / "acts" / "resid.prompt_end.L01.npy")[[1, 2]]
    assert np.array_equal(np.load(imported / "out" / "resid.prompt_end.L01.npy"), expected)
    invoke("store", "export", "mine", "--to", "csv", "--out", "t.csv")
    assert (imported / "t.csv").read_text("utf-8").count("'=nurse") == 3
    assert open_store("mine").select(persona="=nurse").table()["persona"].tolist() == ["=nurse"] * 3


def test_refusals_are_sentences_and_nothing_is_left(imported: Path) -> None:
    for options, error, sentence in (
        (("--to", "numpy", "--persona", "nurse"), UnknownName, "nearest: '=nurse'"),
        (("--to", "numpy", "--layer", "7"), UnknownName, "residual points 0, 1"),
        (("--to", "excel"), ProbeError, "an export is one of numpy, zarr"),
    ):
        with pytest.raises(error, match=sentence):
            invoke("store", "export", "mine", "--out", "none", *options)
    with pytest.raises(ProbeError, match="exists"):
        invoke("store", "export", "mine", "--to", "csv", "--out", "table.csv")
    assert not (imported / "none").exists()
