"""``probe relate`` on a plain table and on a store: verdicts, tables, figures; no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.relation.simulated import KINDS, simulated_table
from probe.stages.analysis import Question
from probe.stages.relate import Asked, relate, run_relate
from probe.store import open_store
from probe.values import ProbeError
from tests.stages.test_store_analysis import store_at
from tests.test_house import WITHOUT_TORCH


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated_table(np.random.default_rng(0), 200, wordings=2)


def test_a_table_gives_one_verdict_per_persona_and_base_and_its_files(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.to_csv(tmp_path / "cells.csv", index=False)
    run_relate(tmp_path / "cells.csv", Question(), Asked(), out=tmp_path / "out")
    found = pd.read_csv(tmp_path / "out" / "relation.csv", keep_default_na=False)
    own = found[found["base"] == "controls"].set_index("persona")["verdict"]
    assert all(own[name] in kind.verdicts for name, kind in KINDS.items())
    assert set(found["base"]) == {"controls", "none"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"locus.csv", "flips.csv", "locus_plane.png", "flips.svg"} <= names
    assert not {"prediction.csv", "sides.csv"} & names
    told = capsys.readouterr().out
    assert "opposed against the mean of the control wordings" in told
    assert "not where it is caused" in told


def test_the_margin_and_the_outcome_can_be_asked_for_and_unknown_ones_are_refused(table: pd.DataFrame) -> None:
    strict = relate(table, Question(base="none"), Asked(delta=0.5)).relation
    assert strict["base"].iloc[0] == "none"
    assert "latent" not in set(strict["verdict"])
    other = relate(table, Question(base="none"), Asked(outcome="probability_high")).relation
    assert set(other["outcome"]) == {"probability_high"}
    with pytest.raises(ProbeError, match="accuracy"):
        relate(table, asked=Asked(outcome="acuracy"))
    with pytest.raises(ProbeError, match="name one with --base"):
        relate(table[~table["persona"].isin(["none", "control"])].reset_index(drop=True))


def test_a_small_store_gives_verdicts_and_says_what_is_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_relate(store_at(tmp_path / "store"), Question(), Asked(permutations=19), out=tmp_path / "out")
    found = pd.read_csv(tmp_path / "out" / "relation.csv")
    assert len(found)
    assert "takes at least 20 cells" in capsys.readouterr().out
    elsewhere = store_at(tmp_path / "elsewhere", only="answer")  # no residual to read the base's from
    tables = relate(open_store(elsewhere), asked=Asked(permutations=19))
    assert "rate" in set(tables.who_changes["quantity"])


def test_relate_needs_no_torch(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "cells.csv", index=False)
    code = WITHOUT_TORCH + (
        "from probe.stages.relate import relate; from probe.stages.targets import read_table\n"
        f"from pathlib import Path; print(len(relate(read_table(Path({str(tmp_path / 'cells.csv')!r}))).relation))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(shown.stdout) > 7


def test_a_base_without_any_other_persona_is_refused_and_with_one_it_is_not() -> None:
    table = simulated_table(np.random.default_rng(0), 40)
    base = str(table["persona"].iloc[0])
    with pytest.raises(ProbeError, match=f"no other persona than {base}"):
        relate(table[table["persona"] == base], Question(base=base))
    assert len(relate(table, Question(base=base)).relation)
