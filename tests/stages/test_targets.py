"""A user's own table: what is text stays text, whatever a file format makes of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import probe
from probe.behaviour import CUTS, Settings
from probe.stages.analysis import Question, behaviour_tables
from probe.stages.commands import run_metrics
from probe.stages.targets import open_target, read_table
from probe.study.scaffold import new_study
from probe.values import ProbeError

CSV = """\
case,persona,stratum,target,y_gen,y_latent,logp_1,logp_2,label_mass,n_gen
01,None,NA,1,1,1,-0.1,-2.4,0.9,3
02,None,null,2,,2,-1.9,-0.2,NaN,
01,nan,NA,1,2,1,-0.3,-1.4,0.9,4
02,nan,null,2,2,2,-1.9,-0.2,0.8,5
"""


def test_a_persona_called_none_a_stratum_na_and_a_case_01_survive_a_csv(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("\ufeff" + CSV, encoding="utf-8")
    table = read_table(tmp_path / "mine.csv")
    assert table["persona"].tolist() == ["None", "None", "nan", "nan"]
    assert table["stratum"].tolist() == ["NA", "null", "NA", "null"]
    assert table["case"].tolist() == ["01", "02", "01", "02"]
    assert table["target"].tolist() == ["1", "2", "1", "2"]
    assert table["logp_1"].dtype == table["label_mass"].dtype == table["n_gen"].dtype == float
    measured = probe.metrics(table).set_index(["metric", "persona", "stratum"]).sort_index()
    assert measured.loc[("accuracy", "None", "all"), "value"] == 0.5
    assert measured.loc[("label_mass", "None", "all"), "n"] == 1
    assert set(measured.index.get_level_values("stratum")) == {"all", "NA", "null"}
    assert len(probe.compare(table, base="None"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_file_format_gives_the_same_metrics_and_integer_labels_are_text(tmp_path: Path, kind: str) -> None:
    rows = [
        {"case": i, "persona": p, "target": 1 + i % 2, "y_gen": None if i == 3 else 1 + (i + k) % 2, "y_latent": 1}
        for i in range(8)
        for k, p in enumerate(("none", "nurse"))
    ]
    table, path = pd.DataFrame(rows), tmp_path / f"mine.{kind}"
    if kind == "csv":
        table.astype({"y_gen": "Int64"}).to_csv(path, index=False)
    elif kind == "jsonl":
        table.astype({"y_gen": "Int64"}).to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)  # y_gen is 1.0, 2.0, NaN here
    measured = probe.metrics(read_table(path), options=["1", "2"]).set_index(["metric", "persona"])["value"]
    assert measured["accuracy", "none"] == 7 / 8
    assert measured["accuracy", "nurse"] == 0
    assert measured["accuracy_latent", "none"] == 0.5
    assert measured["parse_rate", "none"] == 7 / 8


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"case": 1}\n{"case": \n', r"a\.jsonl:2: a line must be one JSON object"),
        ("a.jsonl", "[1, 2]\n", r"a\.jsonl:1: .* found '\[1, 2\]'"),
        ("a.csv", "case,persona\n1,none,2\n", r"a\.csv cannot be read as csv"),
        ("a.csv", "", r"a\.csv cannot be read as csv"),
        ("a.txt", "x", r"a table is read from \.csv"),
        ("a.parquet", "no", r"a\.parquet cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_sentence(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ProbeError, match=said) as refused:
        read_table(tmp_path / name)
    assert "\n" not in str(refused.value)
    with pytest.raises(ProbeError, match="there is no file"):
        read_table(tmp_path / "nowhere.csv")


def stated(n: int = 12) -> pd.DataFrame:
    rows = [
        {"case": str(i), "persona": p, "target": ("stay", "go", "call")[i % 3], "y_gen": ("stay", "go", "call")[j % 3]}
        for i in range(n)
        for p, j in (("none", i), ("nurse", i + (i < 6)))
    ]
    return pd.DataFrame(rows)


def test_options_and_settings_reach_metrics_comparisons_and_bins() -> None:
    table = stated()
    assert probe.metrics(table).query("metric == 'risk_propensity'")["value"].isna().all()
    options = ["stay", "go", "call"]
    known = probe.metrics(table, options=options).set_index(["metric", "persona"])
    assert known.loc[("risk_propensity", "none"), "value"] == pytest.approx(1 / 3)
    ordinal = Settings(cut=CUTS["ordinal"])
    counts = probe.metrics(table, options=options, settings=ordinal).set_index(["metric", "persona"])["counts"]
    assert counts["risk_sensitivity", "nurse"] != known["counts"]["risk_sensitivity", "nurse"]
    compared = probe.compare(table, options=options, high_risk="go").set_index("metric")
    assert compared.loc["risk_propensity", "difference"] == 0
    assert probe.compare(table, options=options).set_index("metric").loc["risk_propensity", "note"] == ""
    sure = table.assign(logp_stay=-0.1, logp_go=-3.0, logp_call=-3.0)
    tables = behaviour_tables(sure, Question(settings=Settings(n_bins=4)))
    assert (tables.reliability["upper"] - tables.reliability["lower"] == 0.25).all()
    with pytest.raises(ProbeError, match="at least one bin"):
        Settings(n_bins=0)


def test_a_base_that_was_asked_for_must_be_there_and_the_default_need_not() -> None:
    table = stated()
    with pytest.raises(
        ProbeError, match=r"base persona 'nurze' is not in the table\. The nearest known persona is 'nurs"
    ):
        behaviour_tables(table, Question(base="nurze"))
    others = table.assign(persona=table["persona"].replace({"none": "doctor"}))
    assert behaviour_tables(others).comparisons.empty
    assert len(behaviour_tables(others, Question(base="doctor")).comparisons)


def test_a_store_that_would_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(CSV)
    for target in (tmp_path / "mine.csv", tmp_path):
        with pytest.raises(ProbeError, match="is no study file; leave it out"):
            run_metrics(target, Question(), store=tmp_path / "store", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_without_captures_is_told_what_makes_them(tmp_path: Path) -> None:
    file = next(path for path in new_study(tmp_path / "mine") if path.name == "study.yaml")
    for store, named in ((None, "cache"), (tmp_path / "elsewhere", "elsewhere")):
        with pytest.raises(ProbeError, match=rf"mine.*has no captures.*{named}.*probe capture .*study.yaml"):
            open_target(file, store=store)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "manifest.json").write_text("{")
    with pytest.raises(ProbeError, match="is damaged"):
        open_target(file, store=tmp_path / "elsewhere")
