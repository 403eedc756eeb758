"""The commands that send vectors and results to other tools, as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer

from probe.cli import app
from probe.stages.direction_files import load_directions, save_directions
from probe.values import Direction, ProbeError, Site
from tests.store.store_samples import write_store


def run(*arguments: str | Path) -> None:
    typer.main.get_command(app).main([str(one) for one in arguments], standalone_mode=False)


@pytest.fixture
def directions(tmp_path: Path) -> Path:
    told = {"model": "tiny", "n_layers": 3}
    vectors = [
        Direction(Site(point, "prompt_end"), np.full(4, point + 1, np.float32), name, "none", 3, provenance=told)
        for name in ("nurse", "physician")
        for point in range(4)
    ]
    return save_directions(tmp_path / "directions.safetensors", vectors)


def test_a_vector_goes_out_and_comes_back_and_the_screen_says_where_each_is_added(
    directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = tmp_path / "nurse.gguf", tmp_path / "back.safetensors"
    run("export", "vector", directions, "--to", "gguf", "--out", out, "--persona", "nurse")
    shown = capsys.readouterr().out
    assert "residual point 3 (output of block 2): norm 8" in shown
    assert "left out: residual point 0 is the embedding" in shown
    assert "left out: residual point 1 is the output of block 0, and llama.cpp refuses" in shown
    run("import", "vector", out, "--out", back, "--persona", "theirs")
    assert [(one.persona, one.site.layer) for one in load_directions(back)] == [("theirs", 2), ("theirs", 3)]


def test_a_point_that_was_asked_for_and_has_no_place_is_refused_and_nothing_is_written(
    directions: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProbeError, match=r"llama\.cpp refuses"):
        run(
            "export", "vector", directions, "--to", "gguf", "--out", tmp_path / "x.gguf",
            "--persona", "nurse", "--layer", "1", "--layer", "2",
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directions.safetensors"]


def test_results_go_out_to_both_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store")
    for to, files in (("inspect", 1), ("lm-eval", 3)):
        run("export", "results", store, "--to", to, "--out", tmp_path / to, "--persona", "nurse")
        assert sum(path.is_file() for path in (tmp_path / to).rglob("*")) == files
        assert f"wrote 6 rows of 1 arms to {tmp_path / to} ({files} files)" in capsys.readouterr().out
