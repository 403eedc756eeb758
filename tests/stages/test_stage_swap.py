"""The text swap through whole studies of a tiny model that was taught its answers: planned, read, resumed, told."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import probe
from probe.cli import app
from probe.mechanism.swap.paths import four_reads
from probe.stages import preparation
from probe.stages.interrupts import Interrupted
from probe.stages.places import beside
from probe.stages.policy import CapturePolicy
from probe.stages.swap import SUFFIX, Swapped, SwapRequest, capture_swap, swap_tables, text_swap
from probe.stages.swap_reads import control, swap_reads
from probe.stages.swap_texts import Author, mask_of, masked_tokens, persona_words
from probe.stages.terminal_swap import show_swap
from probe.store import Share
from probe.study import Study
from probe.values import ProbeError
from tests.stages.taught_model import new_model, teach
from tests.test_house import WITHOUT_TORCH

OPTIONS = ("home", "clinic", "hospital")
PERSONAS = {"none": None, "nurse": "You are an ED nurse.", "physician": "You are a physician."}
ANSWERS = {
    ("none", "0"): "The patient reports fever. Final answer: B",
    ("none", "1"): "The patient reports pain. Final answer: A",
    ("none", "2"): "Aged 54 years. Final answer: B",
    ("none", "3"): "The patient reports pain. Final answer: C",
    ("nurse", "0"): "An ED nurse reports fever. Final answer: C",
    ("nurse", "1"): "An ED nurse reports pain. Final answer: B",
    ("nurse", "2"): "A",
    ("nurse", "3"): "fever fever fever",
    ("physician", "0"): "Final answer: C",
    ("physician", "1"): "fever. Final answer: C",
    ("physician", "2"): "A physician reports. Final answer: C",
    ("physician", "3"): "reports pain. Final answer: A",
}


def study_of(model: Path, **settings: object) -> Study:
    return Study.from_mapping(
        {
            "name": "taught",
            "model": {"id": str(model)},
            "personas": [{"id": name, "text": text} for name, text in PERSONAS.items()],
            "task": {
                "id": "t",
                "instruction": "{case}\n{options}",
                "options": {"home": "stay home", "clinic": "routine care", "hospital": "chest"},
            },
            "cases": [
                {"id": str(i), "input": f"A patient aged {20 + 9 * i} reports fever.", "target": OPTIONS[i % 3]}
                | {"metadata": {"stratum": ("one", "other")[i % 2]}}
                for i in range(4)
            ],
            "capture": {"layers": [0, 3], "positions": ["prompt_end", "answer"]},
            "generation": {"max_new_tokens": 40},
            **settings,
        }
    )


def taught(folder: Path) -> Path:
    model = new_model(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    # One text in tokens that the tokenizer would never make of it: letter by letter.
    split = [token for letter in "fever. Final answer: C" for token in tokenizer.encode(letter)]
    teach(model, study_of(model), {**ANSWERS, ("physician", "1"): split})
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def source(model: Path, tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    """The answers that were generated, which no swap may touch."""
    return probe.run(study_of(model), store=tmp_path_factory.mktemp("swap") / "captures")


@pytest.fixture(scope="module")
def swapped(model: Path, source: probe.Store) -> Swapped:
    return capture_swap(study_of(model), SwapRequest(all_pairs=True), store=source.path)


@pytest.fixture(scope="module")
def reads(swapped: Swapped) -> pd.DataFrame:
    return swap_reads(swapped.store)


def test_a_personas_own_text_is_read_as_while_it_was_generated(swapped: Swapped, source: probe.Store) -> None:
    control = swap_tables(swapped.store, source).control.set_index("persona")
    assert control["rows"].to_dict() == {"none": 4, "nurse": 2, "physician": 4}
    assert (control["largest"] <= 1e-4).all()
    assert control["same"].all()


def test_a_read_that_is_not_the_one_of_the_generation_is_told(
    swapped: Swapped, source: probe.Store, reads: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    off = reads.assign(logp_clinic=reads["logp_clinic"] + np.where(reads["persona"] == "nurse", 2e-4, 0))
    off.attrs = reads.attrs
    found = control(off, source).set_index("persona")
    assert found["same"].to_dict() == {"none": True, "nurse": False, "physician": True}
    show_swap(replace(swap_tables(swapped.store), control=control(off, source)))
    assert "differ by up to 2.0e-04 nats" in capsys.readouterr().out


def test_every_read_is_that_of_a_plain_forward_over_the_other_prompt_and_the_very_tokens(
    swapped: Swapped, source: probe.Store, reads: pd.DataFrame, model: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model)
    prompts = {(r.cell.persona, r.cell.case): r.prompt_tokens for r in source.select().records()}
    texts = {(r.cell.persona, r.cell.case): r for r in source.select().records()}
    letters = {k: swapped.store.manifest["labels"]["letters"][k] for k in range(3)}
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = reads[~reads["masked"]]
    assert len(rows) == 3 * (4 + 2 + 4)
    for row in rows.to_dict("records"):
        written = texts[row["author"], row["case"]]
        tokens = list(written.gen_tokens)
        at = row["n_text"]
        assert tokenizer.decode([tokens[at]]).strip() == written.letter
        prompt = prompts[row["persona"], row["case"]]
        with torch.no_grad():
            logits = plain(torch.tensor([[*prompt, *tokens[:at]]])).logits[0]
        logp = logits.log_softmax(-1)
        own = [float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens[:at])]
        assert row["text_logp"] == pytest.approx(sum(own), abs=1e-3)
        for k, option in enumerate(OPTIONS):
            ids = {ids[0] for mark in ("", " ") if len(ids := tokenizer.encode(mark + letters[k])) == 1}
            assert row[f"logp_{option}"] == pytest.approx(float(logp[-1, list(ids)].logsumexp(0)), abs=1e-4)


def test_texts_are_fed_in_their_own_tokens_and_not_in_the_tokenizers(
    swapped: Swapped, source: probe.Store, model: Path
) -> None:
    (generated,) = source.select(persona="physician", case="1").records()
    canonical = AutoTokenizer.from_pretrained(model).encode(generated.gen_text)
    assert len(canonical) < len(generated.gen_tokens)  # read anew, every position would shift
    fed = list(swapped.store.select(case="1", given="physician").records())
    assert [record.gen_tokens for record in fed] == [generated.gen_tokens] * 3
    assert [record.positions["answer"] - len(record.prompt_tokens) for record in fed] == [20] * 3


def test_answers_without_a_text_before_a_letter_are_left_out_and_counted(
    swapped: Swapped, source: probe.Store, reads: pd.DataFrame
) -> None:
    left = swap_tables(swapped.store, source).left_out
    counts = left.groupby(["persona", "reason"])["n"].sum().to_dict()
    assert counts == {
        ("none", "swapped"): 4,
        ("nurse", "swapped"): 2,
        ("nurse", "letter first"): 1,
        ("nurse", "unparsable"): 1,
        ("physician", "swapped"): 4,
    }
    assert set(reads[reads["author"] == "nurse"]["case"]) == {"0", "1"}
    n = {pairs.persona: len(pairs.case) for pairs in four_reads(reads, "none") if not pairs.masked}
    assert n == {"nurse": 2, "physician": 4}


def test_a_study_whose_answers_have_no_such_letter_is_refused_with_the_reasons(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"has none \(.*truncated\).*reasons before the letter"):
        text_swap(study_of(model, generation={"max_new_tokens": 1}), store=tmp_path / "s")


def test_without_all_pairs_a_persona_meets_the_base_alone_and_the_numbers_are_the_same(
    model: Path, source: probe.Store, swapped: Swapped, tmp_path: Path
) -> None:
    whole = swap_tables(swapped.store)
    star = text_swap(study_of(model), store=source.path)
    again = capture_swap(study_of(model), SwapRequest(all_pairs=True), store=source.path)
    assert again.outcome.resumed == again.outcome.planned  # nothing of the larger swap was lost
    pd.testing.assert_frame_equal(star.effects, whole.effects)
    assert star.listener.empty
    assert not whole.listener.empty
    with pytest.raises(ProbeError, match=r"no persona 'nurs' to be the base.*nurse"):
        text_swap(study_of(model), base="nurs", store=source.path)


def test_the_answers_stay_as_they_were_and_their_study_resumes(
    model: Path, source: probe.Store, swapped: Swapped
) -> None:
    before = {path.name: path.read_bytes() for path in (source.path / "shards").iterdir()}
    again = probe.run(study_of(model), store=source.path)
    assert again.table().equals(source.table())
    assert {path.name: path.read_bytes() for path in (source.path / "shards").iterdir()} == before
    assert swapped.store.name == source.name + SUFFIX
    assert (swapped.store.table()["given"] != "").all()


def test_masked_words_are_replaced_token_by_token_and_count_in_no_score(
    swapped: Swapped, reads: pd.DataFrame, model: Path
) -> None:
    assert swapped.words == ("ED", "nurse", "physician")
    tokenizer = AutoTokenizer.from_pretrained(model)
    mask = mask_of(tokenizer, swapped.words)
    (plain,) = swapped.store.select(persona="none", given="nurse", case="0").records()
    (masked,) = swapped.store.select(persona="none", given="nurse [masked]", case="0").records()
    same = np.array(plain.gen_tokens) == np.array(masked.gen_tokens)
    assert "nurse" not in masked.gen_text
    assert [tokenizer.decode([t]).strip() for t in np.array(plain.gen_tokens)[~same]] == ["ED", "nurse"]
    assert set(np.array(masked.gen_tokens)[~same].tolist()) == {mask.token}
    row = reads[reads["masked"] & (reads["persona"] == "none") & (reads["author"] == "nurse") & (reads["case"] == "0")]
    assert row["n_masked"].item() == 2
    kept = np.array(masked.given_logp)[: row["n_text"].item()][same[: row["n_text"].item()]]
    assert row["text_logp"].item() == pytest.approx(kept.sum())
    # A text without such a word is its own masked text: it is not read twice, and stands in both tables.
    assert not any(r.cell.condition.given == "none [masked]" for r in swapped.store.plan.rows)
    bare = reads[reads["author"] == "none"].set_index(["persona", "case"])
    columns = ["text_logp", *(f"logp_{option}" for option in OPTIONS)]
    pd.testing.assert_frame_equal(
        bare[~bare["masked"]][columns].sort_index(), bare[bare["masked"]][columns].sort_index()
    )


def test_words_are_masked_whole_with_their_plurals_and_capitals_as_they_are(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    mask = mask_of(tokenizer, ("ED", "nurse"))

    def hidden(text: str) -> str:
        return str(tokenizer.decode(masked_tokens(tokenizer, tokenizer.encode(text), text, mask)))

    for text, words in (
        ("A Nurse and nurses.", ("Nurse", "nurses")),
        ("The ED's fever", ("ED's",)),
        ("reported nursed edward", ()),
    ):
        found = hidden(text)
        assert (found == text) == (not words)
        assert not any(word in found for word in words)


def test_persona_words_are_content_words_that_the_task_does_not_use(model: Path) -> None:
    personas = [
        {"id": "none", "text": None},
        {"id": "x", "wordings": ["You are a very bold GP.", "Act as a chest doctor."]},
    ]
    assert persona_words(study_of(model, personas=personas), ("more",)) == ("bold", "GP", "doctor", "more")


def test_names_of_texts_are_read_back() -> None:
    for author in (Author("a b"), Author("x", 3), Author("x, y", 0, True), Author("é", 12, True)):
        assert Author.of(author.source) == author


def test_a_swap_that_was_interrupted_goes_on_to_the_same_reads(
    model: Path, source: probe.Store, reads: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import probe.capture

    monkeypatch.setattr(preparation, "SHARD_ROWS", 8)
    study, whole = study_of(model, capture={"layers": [0], "batch_size": 8}), probe.capture.capture_shard
    calls = []

    def stopped(*asked: object) -> object:
        calls.append(asked)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(*asked)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(probe.capture, "capture_shard", stopped)
    with pytest.raises(Interrupted, match="run the same command again to continue"):
        capture_swap(study, SwapRequest(all_pairs=True), store=tmp_path / "s")
    saved = probe.open_store(beside(tmp_path / "s", SUFFIX), warn=False).coverage()
    assert 0 < saved.committed < saved.planned
    monkeypatch.setattr(probe.capture, "capture_shard", whole)
    resumed = capture_swap(study, SwapRequest(all_pairs=True), store=tmp_path / "s")
    assert resumed.outcome.resumed == saved.committed
    found = swap_reads(resumed.store)
    keys = ["persona", "author", "masked", "case"]
    one, two = (each.sort_values(keys).reset_index(drop=True) for each in (reads, found))
    numbers = ["text_logp", "n_text", "n_masked", *(f"logp_{option}" for option in OPTIONS)]
    pd.testing.assert_frame_equal(one[keys], two[keys])
    np.testing.assert_allclose(one[numbers], two[numbers], atol=2e-4)


def test_drawn_answers_are_swapped_seed_by_seed(model: Path, tmp_path: Path) -> None:
    drawn = study_of(model, generation={"max_new_tokens": 40, "temperature": 0.01, "seeds": 2})
    tables = text_swap(drawn, store=tmp_path / "s", mask=False)
    found = swap_reads(probe.open_store(beside(tmp_path / "s", SUFFIX)))
    assert set(found["seed"]) == {1, 2}
    assert tables.control["same"].all()
    assert tables.control.set_index("persona")["rows"]["physician"] == 8
    assert not found["masked"].any()


def test_the_command_captures_tells_draws_and_reads_a_store_of_reads_again(
    model: Path, source: probe.Store, swapped: Swapped, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({**study_of(model).to_mapping(), "limit": None}))
    out = tmp_path / "out"
    command = ["swap", str(file), "--store", str(source.path), "--all-pairs", "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for words in ("nothing to compute", "masked words: ED, nurse, physician", "control: each persona's own text"):
        assert words in result.output
    assert "nurse: 2 of 4 texts swapped; left out: 1 letter first and 1 unparsable" in result.output
    names = {path.name for path in out.iterdir()}
    assert {"swap_effects.csv", "swap_verdicts.csv", "swap_control.csv", "swap_paths.png"} <= names
    assert {"swap_identifiability.csv", "swap_listener.csv", "swap_parroting.csv", "swap_listener.svg"} <= names
    alone = CliRunner().invoke(app, ["swap", str(swapped.store.path), "--out", str(tmp_path / "again")])
    assert alone.exit_code == 0, alone.output
    for name in ("swap_effects.csv", "swap_control.csv"):
        assert (tmp_path / "again" / name).read_text() == (out / name).read_text()


def test_a_store_of_reads_is_analysed_where_torch_is_not_importable(swapped: Swapped) -> None:
    told = WITHOUT_TORCH + (
        "from probe.stages.swap import swap_tables\nfrom probe.store import open_store\n"
        f"print(len(swap_tables(open_store({str(swapped.store.path)!r})).verdicts))"
    )
    ended = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == len(swap_tables(swapped.store).verdicts) > 0


def test_one_of_several_writers_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="it has one writer"):
        capture_swap(study_of(model), store=tmp_path / "s", policy=CapturePolicy(share=Share(0, 2)))
