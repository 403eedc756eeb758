"""Answer sites and given texts through whole studies of a tiny random model: captured, stored, in tables, told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import probe
from probe.cli import app
from probe.stages.capture import capture
from probe.stages.parsing import reparse
from probe.study import GivenSpec, Study
from probe.values import DEFAULT_PARSER, ChangedPrompt, GivenText, LabelError, ProbeError, StoreMismatch
from tests.tiny_models import CHATML, save_tiny_model

OPTIONS = ("home", "clinic", "hospital")
N = 3
SITES = {"sites": ["prompt_end", "forced", "answer", "after_reasoning"], "forced": "Final answer:"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama", scale=3.0)


def study_of(model: Path, **settings: object) -> Study:
    return Study.from_mapping(
        {
            "name": "tiny",
            "model": {"id": str(model)},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are an ED nurse."}],
            "task": {
                "id": "t",
                "instruction": "{case}\n{options}",
                "options": {"home": "stay home", "clinic": "routine care", "hospital": "ED"},
            },
            "cases": [
                {"id": i, "input": f"A patient aged {20 + 9 * i} reports fever.", "target": OPTIONS[i]}
                for i in range(N)
            ],
            "capture": {"layers": [0, 3], "positions": ["prompt_end", "forced", "answer"]},
            "labels": SITES,
            "generation": {"max_new_tokens": 6},
            **settings,
        }
    )


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    return probe.run(study_of(model), store=tmp_path_factory.mktemp("sites") / "store")


def test_forced_sites_stand_in_the_table_in_the_tables_of_sites_and_in_exports(
    store: probe.Store, tmp_path: Path
) -> None:
    table = store.table()
    assert table[[f"forced_logp_{option}" for option in OPTIONS]].notna().all(axis=None)
    assert ((table["forced_label_mass"] > 0) & (table["forced_label_mass"] <= 1)).all()
    np.testing.assert_allclose(store.select().label_logp(site="forced")[:, 1], table["forced_logp_clinic"], rtol=1e-6)
    sites = probe.tables(store).sites
    assert list(dict.fromkeys(sites["site"])) == ["prompt_end", "forced", "answer"]
    view = store.select(persona="nurse")
    view.export("numpy", tmp_path / "out")
    saved = np.load(tmp_path / "out" / "resid.forced.L03.npy")
    np.testing.assert_array_equal(saved, np.asarray(view.resid(layer=3, position="forced")))
    assert store.verify() == []


def test_why_sites_are_absent_is_counted_for_the_run(model: Path, tmp_path: Path) -> None:
    outcome = capture(study_of(model), store=tmp_path / "s")
    assert outcome.absent == {"after_reasoning": {"no_reasoning": 2 * N}}
    (run,) = probe.open_store(tmp_path / "s").runs()
    assert sum(shard["absent_sites"]["after_reasoning"]["no_reasoning"] for shard in run["shards"]) == 2 * N
    assert capture(study_of(model), store=tmp_path / "s").absent == {}


def test_other_sites_are_another_store_and_the_default_ones_leave_its_identity_as_it_was(
    model: Path, store: probe.Store, tmp_path: Path
) -> None:
    assert store.manifest["labels"]["forced"] == "Final answer:"
    with pytest.raises(StoreMismatch, match=r"labels\.forced"):
        probe.run(study_of(model, labels={**SITES, "forced": "So:"}), store=store.path)
    plain = probe.run(study_of(model, labels={}, capture={"layers": [0]}), store=tmp_path / "plain")
    assert set(plain.manifest["labels"]) == {"options", "texts", "letters", "high_risk"}


@pytest.fixture(scope="module")
def crossed(model: Path, store: probe.Store, tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    """The study again, with each persona's answers given to every persona."""
    path = tmp_path_factory.mktemp("crossed") / "store"
    return probe.run(study_of(model, given={"store": str(store.path)}), store=path)


def test_the_answers_of_a_store_are_given_to_every_persona(store: probe.Store, crossed: probe.Store) -> None:
    table, own = crossed.table(), store.table()
    answered = own[own["n_gen"] > 0]
    assert len(table) == len(own) + 2 * len(answered)
    given = table[table["given"] != ""]
    assert set(given["given"]) == set(answered["persona"])
    assert given["given_logp"].notna().all()
    assert (given["given_logp"] < 0).all()
    for persona in ("none", "nurse"):
        tokens = {row.planned.cell.case: run.tolist() for row, run in _runs(store, persona=persona, given="")}
        for row, run in _runs(crossed, given=persona):
            assert run.tolist() == tokens[row.planned.cell.case]
    mine = given[given["given"] == given["persona"]].set_index(["persona", "case"])["status"]
    assert (mine == answered.set_index(["persona", "case"])["status"].loc[mine.index]).all()


def _runs(store: probe.Store, **asked: str):  # type: ignore[no-untyped-def]
    view = store.select(**asked)  # type: ignore[arg-type]  # names of attributes
    return zip(view.rows, view.gen_tokens(), strict=True)


def test_metrics_and_shifts_are_those_of_the_generated_answers(store: probe.Store, crossed: probe.Store) -> None:
    numbers = ["metric", "persona", "stratum", "value", "n"]
    one, other = (probe.metrics(each)[numbers] for each in (store, crossed))
    assert one.equals(other)
    assert probe.shift(store)["n"].tolist() == probe.shift(crossed)["n"].tolist()
    np.testing.assert_allclose(probe.shift(store)["value"], probe.shift(crossed)["value"], rtol=1e-4)


def test_given_rows_join_the_store_of_the_generated_ones(model: Path, store: probe.Store) -> None:
    before = {row["row_id"] for shard in store.shards for row in shard.rows}
    joined = capture(study_of(model, given={"store": str(store.path)}), store=store.path)
    assert joined.resumed == len(before)
    assert joined.committed > joined.resumed
    assert capture(study_of(model), store=store.path).committed == len(before)


def test_an_edited_given_text_is_noticed(model: Path, tmp_path: Path) -> None:
    def given(text: str) -> Study:
        return replace(study_of(model), given=GivenSpec((GivenText("0", "expert", text),), only=True))

    path = tmp_path / "s"
    first = probe.run(given("The answer is A."), store=path).table()
    assert first["status"].tolist() == ["parsed", "parsed"]
    assert first["y_gen"].tolist() == ["home", "home"]
    with pytest.raises(ChangedPrompt, match="2 rows changed since capture"):
        probe.run(given("The answer is B."), store=path)
    assert probe.run(given("The answer is A."), store=path).table().equals(first)
    with pytest.raises(ProbeError, match="all 2 cells are reads of given texts"):
        probe.metrics(probe.open_store(path))


def test_given_answers_inside_reasoning_that_the_template_opened_are_read_anew_as_they_were(
    model: Path, tmp_path: Path
) -> None:
    texts = (
        GivenText("0", "inside", "Final answer: C"),
        GivenText("0", "behind", "C?</think> Final answer: A"),
        GivenText("0", "cut", "C?</think> Final answer: A", cut=True),
    )
    opening = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    study = Study.from_mapping(
        study_of(model).to_mapping() | {"model": {"id": str(model), "chat_template": opening}, "name": "opened"}
    )
    store = probe.run(replace(study, given=GivenSpec(texts, only=True)), store=tmp_path / "s")
    by_source = store.table().set_index(["persona", "given"])["status"]["nurse"].to_dict()
    assert by_source == {"inside": "unparsable", "behind": "parsed", "cut": "truncated"}
    assert not reparse(store, DEFAULT_PARSER).changes


def test_a_store_without_the_persona_or_with_another_case_is_refused(model: Path, store: probe.Store) -> None:
    with pytest.raises(ProbeError, match=r"has no persona 'nurs'.*nurse"):
        probe.run(study_of(model, given={"store": str(store.path), "personas": ["nurs"]}), store=store.path)
    other = [{"id": "0", "input": "Another patient.", "target": "home"}]
    with pytest.raises(ProbeError, match="holds answers to another text of the case '0'"):
        probe.run(study_of(model, cases=other, given={"store": str(store.path)}), store=store.path)


@pytest.fixture
def study_file(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({**study_of(model).to_mapping(), "limit": None}))
    return path


def test_the_tokens_command_shows_what_the_pass_reads(store: probe.Store, study_file: Path) -> None:
    result = CliRunner().invoke(app, ["tokens", str(study_file), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [cell["persona"] for cell in told["cells"]] == ["none", "nurse"]
    records = {record.cell.row_id: record for record in store.select(case="0", given="").records()}
    by_persona = {record.cell.persona: record for record in records.values()}
    for cell in told["cells"]:
        record = by_persona[cell["persona"]]
        assert cell["n_tokens"] == len(record.prompt_tokens)
        assert cell["structural"] == cell["of_template"] > 0
        places = {site["site"]: site for site in cell["sites"]}
        for site in ("prompt_end", "forced"):
            assert places[site]["index"] == record.positions[site]
        assert places["prompt_end"]["token_id"] == record.prompt_tokens[-1]
        assert places["answer"]["index"] is None
        for site in ("prompt_end", "forced"):
            ids = {(label["option"], tuple(label["token_ids"])) for label in cell["labels"] if label["site"] == site}
            read = record.labels[site].variant_ids
            assert ids == {(option, (token,)) for option, own in zip(OPTIONS, read, strict=True) for token in own}


def test_the_tokens_command_shows_the_first_cell_that_a_text_is_given_for(study_file: Path) -> None:
    only = ["--json", "--set", "given={only: true, texts: [{case: '1', source: x, text: A}]}"]
    told = json.loads(CliRunner().invoke(app, ["tokens", str(study_file), *only]).stdout)
    assert [(cell["persona"], cell["case"]) for cell in told["cells"]] == [("none", "1"), ("nurse", "1")]
    refused = CliRunner().invoke(app, ["tokens", str(study_file), *only, "--case", "0"])
    assert isinstance(refused.exception, ProbeError)
    assert "no text is given for the case '0'" in str(refused.exception)


def test_the_tokens_command_shows_tables_and_one_persona_on_request(study_file: Path) -> None:
    shown = CliRunner().invoke(app, ["tokens", str(study_file), "--persona", "nurse", "--case", "2"])
    assert shown.exit_code == 0
    for words in ("nurse / 2 / system", "prompt_end", "as many as the template's own", "that may write a letter"):
        assert words in shown.output
    assert "none /" not in shown.output
    several = CliRunner().invoke(app, ["tokens", str(study_file), "--set", "task.letters=[QZ, QX, B]"])
    assert isinstance(several.exception, LabelError)
    assert "set labels.score: continuation" in str(several.exception)
    spelled = ["--set", "task.letters=[QZ, QX, B]", "--set", "labels.score=continuation"]
    assert "+" in CliRunner().invoke(app, ["tokens", str(study_file), *spelled]).output
