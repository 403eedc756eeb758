"""Published predictions are scored and tested without a model or a store, whatever their columns are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probe
from probe.stages.analysis import Question, behaviour_tables, cells
from probe.stages.commands import run_metrics, run_rankings
from probe.stages.targets import read_rankings, read_table
from probe.stages.terminal_tables import show_comparisons
from probe.values import ProbeError
from tests.test_house import WITHOUT_TORCH

LABELS = ("home", "clinic", "hospital")
EMPTY = {"arms", "positions", "rotations", "floor", "variance"}


def predictions(n: int = 40, *, wordings: int = 1, personas: tuple[str, ...] = ("none", "nurse")) -> pd.DataFrame:
    """A planted study: under ``nurse`` every second wrong answer of ``none`` is right."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(n):
        target = LABELS[i % 3]
        for persona in personas:
            for wording in range(wordings):
                right = i % 4 > 0 or (persona == "nurse" and i % 8 == 0) or rng.random() < 0.02
                logits = rng.normal(size=3) + 2 * np.array([label == target for label in LABELS])
                logp = logits - np.log(np.exp(logits).sum())
                answer = target if right else LABELS[(i + 1) % 3]
                rows.append(
                    {"question": f"q{i}", "who": persona, "wording": wording, "gold": target, "kind": "ab"[i % 2]}
                    | {"answer": answer, "letter_first": i % 2 == 0}
                    | {f"logp_{label}": value for label, value in zip(LABELS, logp, strict=True)}
                )
    return pd.DataFrame(rows)


NAMES = {"case": "question", "persona": "who", "target": "gold", "stratum": "kind", "y_gen": "answer"}


def saved(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return path


def test_cells_that_lack_the_site_of_the_latent_label_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predictions(8)
    sites = {f"forced_logp_{label}": table[f"logp_{label}"] for label in LABELS}
    told = []
    for lack in (0, 5):
        table = table.assign(**sites)
        table.loc[: lack - 1, list(sites)] = np.nan
        path = saved(table, tmp_path / f"lack{lack}.csv")
        run_metrics(path, store=None, question=Question(site="forced"), out=tmp_path / "out", columns=NAMES)
        told.append(capsys.readouterr().out.splitlines()[0])
    assert told[0] == "the latent label is read at the site forced"
    assert told[1].startswith(f"{told[0]}; 5 of 16 cells lack it")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_of_other_names_give_the_tables_of_the_right_names(tmp_path: Path, suffix: str) -> None:
    raw = predictions()
    theirs = behaviour_tables(read_table(saved(raw, tmp_path / f"t.{suffix}"), NAMES))
    renamed = raw.rename(columns={theirs: ours for ours, theirs in NAMES.items()})
    ours = behaviour_tables(read_table(saved(renamed, tmp_path / f"o.{suffix}")))
    for name, table in vars(ours).items():
        pd.testing.assert_frame_equal(vars(theirs)[name], table)
        assert table.empty == (name in EMPTY | {"omnibus"}), name
    found = ours.comparisons.set_index(["metric", "stratum"]).loc[("accuracy", "all")]
    right = (raw["answer"] == raw["gold"]).groupby([raw["question"], raw["who"]]).first().unstack()
    assert found["b"] == (right["nurse"] & ~right["none"]).sum() > 3
    assert found["c"] == (right["none"] & ~right["nurse"]).sum()


def test_a_label_column_of_another_name_is_read_as_text_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who,q,gold,said\nNA,01,1,1\nnone,01,1,\n")
    table = read_table(tmp_path / "t.csv", {"persona": "who", "case": "q", "target": "gold", "y_gen": "said"})
    assert table["persona"].tolist() == ["NA", "none"]
    assert table["case"].tolist() == ["01", "01"]
    assert table["y_gen"].isna().tolist() == [False, True]
    plain = read_table(tmp_path / "t.csv")  # the control: unknown names are read as pandas reads them
    assert plain["q"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"case": "qestion"}, "no column 'qestion' to read as case. The nearest known column is 'question'"),
        ({"cases": "question"}, "'cases' is no column of a table of cells. The nearest known column is 'case'"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path: Path, names: dict[str, str], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        read_table(saved(predictions(), tmp_path / "t.csv"), names)


def test_missing_columns_take_their_metrics_with_them_and_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predictions().rename(columns={theirs: ours for ours, theirs in NAMES.items()})
    saved(table.drop(columns=["y_gen", "letter_first"]), tmp_path / "latent.csv")
    run_metrics(tmp_path / "latent.csv", Question(), out=tmp_path / "out")
    told = capsys.readouterr().out
    assert told.count("need the column y_gen") == 1
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert {"accuracy_latent", "ece", "brier"} <= set(metrics["metric"])
    assert not {"accuracy", "consistency", "parse_rate"} & set(metrics["metric"])
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"metrics", "comparisons", "reliability", "risk"}
    run_metrics(saved(table, tmp_path / "whole.csv"), Question(), out=tmp_path / "whole")
    assert "y_gen" not in capsys.readouterr().out
    assert "accuracy" in set(pd.read_csv(tmp_path / "whole" / "metrics.csv")["metric"])


def test_control_wordings_add_the_noise_floor_and_the_comparison_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predictions(wordings=3, personas=("none", "nurse", "plain"))
    path = saved(table.rename(columns={theirs: ours for ours, theirs in NAMES.items()}), tmp_path / "t.csv")
    run_metrics(path, Question(controls=("plain",)), out=tmp_path / "out")
    shown = capsys.readouterr().out
    assert "noise floor: distance from 3 neutral wordings" in shown
    floor = pd.read_csv(tmp_path / "out" / "floor.csv")
    assert set(floor["persona"]) == {"none", "nurse"}
    assert set(pd.read_csv(tmp_path / "out" / "comparisons.csv")["base"]) == {"none", "controls"}
    assert (tmp_path / "out" / "variance.csv").exists()
    run_metrics(path, Question(), out=tmp_path / "without")
    assert "noise floor" not in capsys.readouterr().out
    assert not (tmp_path / "without" / "floor.csv").exists()
    with pytest.raises(ProbeError, match="the control persona 'plian' is not in the table"):
        run_metrics(path, Question(controls=("plian",)), out=tmp_path / "wrong")


def test_without_strata_it_is_said_that_all_is_pooled_and_columns_of_other_names_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predictions().rename(columns={theirs: ours for ours, theirs in NAMES.items()})
    for name, kept in (("with", table), ("without", table.drop(columns="stratum"))):
        run_metrics(saved(kept, tmp_path / f"{name}.csv"), Question(), out=tmp_path / name)
        assert ("no case has a stratum" in capsys.readouterr().out) == (name == "without")
    with pytest.raises(ProbeError, match=r"missing: target. It has .*gold.*; say which is meant: --columns target="):
        run_metrics(saved(table.rename(columns={"target": "gold"}), tmp_path / "g.csv"), Question(), out=tmp_path)


def test_a_planned_contrast_without_a_test_is_told_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    table = predictions().rename(columns={theirs: ours for ours, theirs in NAMES.items()})
    one = table[table["case"] == table["case"].iloc[0]]
    one.attrs["study"] = {"base": "none", "confirm": [{"persona": "nurse", "metric": "brier"}]}
    show_comparisons(probe.compare(one))
    shown = capsys.readouterr().out
    assert "planned: brier of nurse against no persona, all cases: " in shown
    assert "no test: " in shown
    assert "0 planned and " in shown


def test_planned_contrasts_of_the_study_are_tested_apart_from_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    table = predictions().rename(columns={theirs: ours for ours, theirs in NAMES.items()})
    planned = {"persona": "nurse", "metric": "accuracy", "base": None, "stratum": "all", "direction": "greater"}
    table.attrs["study"] = {"base": "none", "confirm": [planned, {**planned, "persona": "surgeon"}]}
    rows = probe.compare(table)
    assert [one["persona"] for one in rows.attrs["waiting"]] == ["surgeon"]
    show_comparisons(rows)
    shown = capsys.readouterr().out
    assert "planned: accuracy of nurse against no persona" in shown
    assert "without captured cells: accuracy of surgeon" in shown
    confirmed = rows[rows["family"] == "confirmatory"]
    assert confirmed[["persona", "metric", "stratum"]].values.tolist() == [["nurse", "accuracy", "all"]]
    table.attrs = {}
    plain = probe.compare(table)
    assert not (plain["family"] == "confirmatory").any()
    key = ["metric", "stratum"]
    two_sided = plain.set_index(key).loc[("accuracy", "all"), "p"]
    assert confirmed["p"].iloc[0] == pytest.approx(two_sided / 2)


def test_equal_mass_bins_change_what_is_shown_and_the_reliability_bins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(predictions().rename(columns={b: a for a, b in NAMES.items()}), tmp_path / "t.csv")
    for equal_mass in (False, True):
        run_metrics(path, Question(equal_mass=equal_mass), out=tmp_path / str(equal_mass))
        assert ("bins of equal mass" in capsys.readouterr().out) == equal_mass
    bins = {kind: pd.read_csv(tmp_path / kind / "reliability.csv") for kind in ("False", "True")}
    counts = {kind: table.query("stratum == 'all' and labels == 'latent'")["count"] for kind, table in bins.items()}
    assert counts["True"].max() - counts["True"].min() <= 2 < counts["False"].max() - counts["False"].min()


def test_a_store_less_table_needs_no_torch(tmp_path: Path) -> None:
    path = saved(predictions(), tmp_path / "t.csv")
    code = (
        f"{WITHOUT_TORCH}\nimport pathlib\nfrom probe.stages.commands import run_metrics\n"
        "from probe.stages.analysis import Question\n"
        f"run_metrics(pathlib.Path({str(path)!r}), Question(), out=pathlib.Path({str(tmp_path / 'out')!r}), "
        f"columns={NAMES!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "comparisons.csv").exists()


RANKINGS = """\
item,arm,place,judge,confidence
1,none,2,ann,80
1,nurse,1,ann,80
1,none,1,bob,30
1,nurse,2,bob,30
2,none,2,ann,90
2,nurse,1,ann,90
2,none,2,bob,95
2,nurse,1,bob,95
3,none,1,ann,60
3,nurse,2,ann,60
3,none,1,bob,70
3,nurse,2,bob,70
"""
RANKED = {"case": "item", "persona": "arm", "rank": "place"}


def test_rankings_give_reciprocal_ranks_and_the_agreement_of_the_judges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ranked.csv").write_text(RANKINGS)
    run_rankings(tmp_path / "ranked.csv", base="none", out=tmp_path / "out", columns=RANKED)
    shown = capsys.readouterr().out
    assert "mean reciprocal rank" in shown
    assert "ann and bob, confidence all: kappa" in shown
    ranked = pd.read_csv(tmp_path / "out" / "rankings.csv").set_index("persona")["value"]
    assert ranked.to_dict() == pytest.approx({"none": (0.75 + 0.5 + 1) / 3, "nurse": (0.75 + 1 + 0.5) / 3})
    assert (tmp_path / "out" / "agreement.csv").exists()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"rnk": "place"}, "'rnk' is not there. The nearest known column of rankings is 'rank'"),
        ({"rank": "plaice"}, "'plaice' is not there. The nearest known column is 'place'"),
    ],
)
def test_a_wrong_column_of_rankings_is_named(tmp_path: Path, columns: dict[str, str], words: str) -> None:
    (tmp_path / "ranked.csv").write_text(RANKINGS)
    with pytest.raises(ProbeError, match=words):
        read_rankings(tmp_path / "ranked.csv", columns)
    assert len(read_rankings(tmp_path / "ranked.csv", RANKED)) == 12


def test_a_rank_or_a_confidence_that_is_no_number_is_refused_and_none_is_lost(tmp_path: Path) -> None:
    sound = "case,persona,judge,rank,confidence\n1,none,ann,1,80\n1,nurse,ann,2,\n"
    path = tmp_path / "ranked.csv"
    path.write_text(sound)
    assert read_rankings(path)["confidence"].isna().tolist() == [False, True]
    for found, name, bad in (("2,", "rank", "second,"), ("80", "confidence", "high")):
        path.write_text(sound.replace(found, bad))
        with pytest.raises(ProbeError, match=f"{name} must hold numbers, found '{bad.strip(',')}' in row"):
            read_rankings(path)


def test_without_the_default_base_it_is_said_that_nothing_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predictions().rename(columns={theirs: ours for ours, theirs in NAMES.items()})
    path = saved(table.replace({"persona": {"none": "plain"}}), tmp_path / "t.csv")
    run_metrics(path, Question(), out=tmp_path / "out")
    assert (
        "nothing is compared: the base persona (by default none) is not there; name one with --base: "
        in capsys.readouterr().out
    )
    run_metrics(path, Question(base="plain"), out=tmp_path / "based")
    assert "nothing is compared" not in capsys.readouterr().out


def test_rankings_given_to_metrics_and_columns_given_to_a_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ranked.csv").write_text(RANKINGS.replace("place", "rank").replace("arm", "persona"))
    with pytest.raises(ProbeError, match="read it with `probe rankings`"):
        run_metrics(tmp_path / "ranked.csv", Question(), out=tmp_path / "out")
    with pytest.raises(ProbeError, match="no captured cell"):
        cells(pd.DataFrame())


def test_public_names_reach_the_same_tables() -> None:
    table = predictions(wordings=2, personas=("none", "plain")).rename(columns={b: a for a, b in NAMES.items()})
    everything = probe.tables(table, probe.Question(controls=("plain",)))
    pd.testing.assert_frame_equal(probe.metrics(table), everything.metrics)
    pd.testing.assert_frame_equal(probe.compare(table, controls=["plain"]), everything.comparisons)
    pd.testing.assert_frame_equal(probe.noise_floor(table, controls=["plain"]), everything.floor)
    assert json.loads(everything.metrics.head(1).to_json(orient="records"))
