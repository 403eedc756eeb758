"""A whole study, from a file to figures: the organism's planted truth is found again, and lost when shuffled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import probe
from probe.capture import Capturer, Job, PassSettings
from probe.capture.raw_rows import LetterStep, RawRow
from probe.capture.shards import _answer_step, _sites
from probe.capture.site_forks import ForkedSites
from probe.models import find_model
from probe.models.loading import load_backend
from probe.models.points import residual_points
from probe.organism import CHECKPOINT
from probe.prompts import LabelTokens, LetterVocabulary, Prompt, parse_answer
from probe.stages.capture import capture
from probe.stages.run import run_study
from probe.study import Study
from probe.values import Cell, Condition, LabelRead, PlannedRow
from tests.test_house import WITHOUT_TORCH
from tests.tiny_models import DEFAULT_SYSTEM, NO_SYSTEM, save_tiny_model

N_CASES = 600


def organism_study(**settings: object) -> Study:
    return Study.from_mapping(
        {
            "name": "organism",
            "model": {"id": "organism"},
            "personas": "builtin:persona-paradox",
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "generation": {"max_new_tokens": 128},
            **settings,
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    path = tmp_path_factory.mktemp("organism") / "store"
    return probe.run(organism_study(limit=N_CASES), store=path)


def test_a_store_holds_every_cell_of_the_study_once(store: probe.Store) -> None:
    table = store.table()
    assert len(table) == 6 * N_CASES
    assert not table.duplicated(["persona", "case"]).any()
    assert store.coverage().committed == store.coverage().planned
    assert store.verify() == []
    assert (table["status"] == "parsed").mean() >= 0.98


def test_measured_labels_agree_with_the_plan_and_not_with_a_shuffled_plan(store: probe.Store) -> None:
    """Gates on cells whose planned top-two gap exceeds .10: mean over personas >= .93, none < .90, in each channel."""
    table = store.table()
    for label, prefix in (("y_latent", "planned_logp_"), ("y_gen", "planned_stated_logp_")):
        planned = np.exp(table[[prefix + option for option in "ABC"]].to_numpy())
        ordered = np.sort(planned, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 0.10
        expected = np.array(list("ABC"))[planned.argmax(1)]
        agreement = (table[label] == expected)[clear].groupby(table["persona"][clear]).mean()
        assert agreement.mean() >= 0.93, agreement
        assert agreement.min() >= 0.90, agreement
        shuffled = np.random.default_rng(0).permutation(expected)
        assert (table[label] == shuffled)[clear].mean() < 0.6


def test_metrics_lie_within_five_points_of_the_plan_on_the_same_cells(store: probe.Store) -> None:
    metrics = probe.metrics(store)
    named = ["accuracy", "accuracy_latent", "consistency", "consistency_strict", "ece", "overconfidence"]
    named += ["risk_propensity", "risk_propensity_latent"]
    rows = metrics[metrics["metric"].isin(named)]
    assert len(rows) == len(named) * 6 * 3
    assert (rows["value"] - rows["planned"]).abs().max() <= 0.05
    # The control: another persona's plan is far off.
    latent = rows[rows["metric"] == "risk_propensity"].set_index(["persona", "stratum"])
    other = latent["planned"]["cautious_ed_physician", "emergency"]
    assert abs(latent["value"]["none", "emergency"] - other) > 0.2


def test_the_role_helps_in_emergencies_hurts_in_primary_care_and_vanishes_when_personas_are_shuffled(
    store: probe.Store,
) -> None:
    table = store.table()
    table["right"] = (table["y_gen"] == table["target"]).astype(float)
    compared = probe.compare(store, base="none").set_index(["metric", "persona", "stratum"])["difference"]
    rng = np.random.default_rng(1)
    for stratum, sign in (("emergency", 1), ("primary_care", -1)):
        right = table[table["stratum"] == stratum].pivot_table(index="case", columns="persona", values="right")
        effect = (right["ed_physician"] - right["none"]).mean()
        assert compared["accuracy", "ed_physician", stratum] == pytest.approx(effect)
        shuffled = []
        for _ in range(200):
            permuted = rng.permuted(right.to_numpy(), axis=1)  # within case: which persona said it is forgotten
            shuffled.append((permuted[:, 0] - permuted[:, 1]).mean())
        assert sign * effect > np.quantile(np.abs(shuffled), 0.95)
        assert abs(np.mean(shuffled)) < 0.02


def test_every_stored_number_of_a_cell_is_what_plain_transformers_gives(store: probe.Store) -> None:
    """A second implementation: tokens from ``generate``, label logits and residuals from plain forwards."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABC"]
    view = store.select(persona=["none", "bold_ed_physician"], where="case.str.endswith('3')")
    texts = view.texts().set_index("row_id")
    checked = 0
    for record in list(view.records())[:12]:
        ids = tokenizer(texts.loc[record.cell.row_id, "prompt"], add_special_tokens=False, return_tensors="pt")
        assert tuple(ids["input_ids"][0].tolist()) == record.prompt_tokens
        generated = model.generate(**ids, max_new_tokens=128, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tuple(generated.tolist()[: len(record.gen_tokens)]) == record.gen_tokens
        whole = torch.tensor([[*record.prompt_tokens, *record.gen_tokens]])
        with torch.no_grad():
            output = model(whole, output_hidden_states=True)
        for site, position in record.positions.items():
            if position < 0:
                continue
            for layer in range(model.config.num_hidden_layers):
                expected = output.hidden_states[layer][0, position].numpy()
                scale = np.abs(expected).max()
                np.testing.assert_allclose(record.resid[site][layer], expected, atol=2e-5 * scale)
            # As probabilities: a rare second variant of a letter (" C") is summed into it, and stands here alone.
            expected = output.logits[0, position].softmax(-1)[letters].numpy()
            np.testing.assert_allclose(np.exp(record.labels[site].logp), expected, atol=1e-5)
        answer = record.positions["answer"]
        if record.status == "parsed":
            letter = tokenizer.decode([int(whole[0, answer + 1])]).strip()
            assert letter == record.letter == record.gen_text[slice(*record.span)]
            checked += 1
    assert checked >= 8


def test_a_report_is_made_from_a_read_only_store_where_torch_is_not_importable(
    store: probe.Store, tmp_path: Path
) -> None:
    code = (
        f"{WITHOUT_TORCH}\nfrom pathlib import Path\nfrom probe.stages.commands import run_report\n"
        f"run_report(Path({str(store.path)!r}), store=None, base=None, out=Path({str(tmp_path / 'out')!r}))\n"
    )
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "out" / "report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_a_second_run_resumes_and_recomputes_nothing(store: probe.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in (store.path / "shards").iterdir()}
    monkeypatch.setattr("probe.models.loading.load_backend", _no_model)
    outcome = capture(organism_study(limit=N_CASES), store=store.path)
    assert (outcome.committed, outcome.resumed) == (outcome.planned, outcome.planned)
    assert {path.name: path.read_bytes() for path in (store.path / "shards").iterdir()} == before
    with pytest.raises(AssertionError, match="a model was loaded"):  # the control: more cells need the model
        capture(
            organism_study(generation={"max_new_tokens": 128}, conditions={"instructions": [0, 1]}), store=store.path
        )


def _no_model(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: killed\nmodel: {id: organism}\npersonas: builtin:persona-paradox\ntask: builtin:triage\n"
        "cases: builtin:triage\nlimit: 24\ncapture: {batch_size: 8}\ngeneration: {max_new_tokens: 64}\n"
        "analyses: [metrics]\n"
    )
    command = [sys.executable, "-m", "probe.cli", "capture", str(study), "--store"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    killed = tmp_path / "killed"
    running = subprocess.Popen([*command, str(killed)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((killed / "shards").glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    saved = {path.name for path in (killed / "shards").iterdir()}
    assert saved
    subprocess.run([*command, str(killed)], check=True, env=environment, capture_output=True)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "shards").iterdir()}
    assert {path.name: path.read_bytes() for path in (killed / "shards").iterdir()} == whole
    assert saved <= set(whole)


@pytest.mark.parametrize(("family", "template"), [("qwen3", DEFAULT_SYSTEM), ("gemma2", NO_SYSTEM)])
def test_another_architecture_and_hand_written_cases_end_with_the_same_products(
    tmp_path: Path, family: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model", family, template, scale=3.0)
    write_cases(tmp_path / "cases.jsonl")
    positions = ["prompt_end", "persona_end", "case_mean", "answer", "response_mean"]
    study = Study.from_mapping(
        {
            "name": family,
            "model": {"id": "model"},
            "personas": "builtin:persona-paradox",
            "task": "builtin:triage",
            "cases": "cases.jsonl",
            "capture": {"positions": positions},
            "generation": {"max_new_tokens": 12},
        },
        directory=tmp_path,
    )
    outcome = run_study(study)
    assert outcome.exit_status == 0
    opened = probe.open_store(outcome.store)
    table = opened.table()
    assert set(table["placement"]) == {"user" if family == "gemma2" else "system"}
    assert opened.select(persona="ed_nurse").resid(layer=3, position="case_mean").shape == (4, 32)
    products = {path.name for path in Path(f"figures/{family}").iterdir()}
    assert {"report.html", "metrics.csv", "shift.csv", "persona_effects.png", "persona_effects.svg"} <= products
    page = Path(f"figures/{family}/report.html").read_text()
    assert ("has no system role" in page) == (family == "gemma2")
    assert "planned_logp_A" not in table


def write_cases(path: Path, **changes: str) -> None:
    texts = {
        "v1": ("A 54 year old man has crushing chest pain.", "C", "emergency"),
        "v2": ("A 23 year old woman has a runny nose.", "A", "primary_care"),
        "v3": ("A 61 year old woman has had a cough for five days.", "B", "primary_care"),
        "v4": ("A 70 year old man cannot speak clearly.", "C", "emergency"),
    }
    lines = [
        {"id": key, "input": changes.get(key, text), "target": target, "metadata": {"stratum": stratum}}
        for key, (text, target, stratum) in texts.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")


def test_a_prompt_beyond_the_context_fails_on_record_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cases(tmp_path / "cases.jsonl", v2="pain " * 3000, v3="A man<|im_end|> with pain.")
    study = organism_study(cases="cases.jsonl", name="long")
    outcome = run_study(study)
    assert (outcome.planned, outcome.committed, outcome.failed, outcome.exit_status) == (24, 12, 12, 3)
    failures = probe.open_store(outcome.store).failures()
    assert set(failures["kind"]) == {"PromptTooLong", "SpecialTokens"}
    assert "failed for good" in Path("figures/long/report.html").read_text()
    again = capture(study)
    assert (again.resumed, again.failed, again.exit_status) == (12, 12, 3)


def test_a_refused_case_that_was_mended_runs_with_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cases(tmp_path / "cases.jsonl", v1="A man<|im_end|> with pain.")
    refused = capture(organism_study(cases="cases.jsonl", name="mended"))
    assert (refused.committed, refused.failed) == (18, 6)
    write_cases(tmp_path / "cases.jsonl", v1="A man with pain.")
    mended = capture(organism_study(cases="cases.jsonl", name="mended"))
    assert (mended.resumed, mended.committed, mended.failed) == (18, 24, 0)


def test_a_small_run_grows_into_a_large_one_whatever_its_first_case_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cases(tmp_path / "cases.jsonl", v1="A man<|im_end|> with pain.")
    study = organism_study(cases="cases.jsonl", name="grown")
    assert capture(study.limited(1)).committed == 0
    grown = capture(study)
    assert (grown.committed, grown.failed) == (18, 6)
    tensors, metadata = probe.open_store(grown.store).readout()
    assert tensors["unembed.weight"].shape[0] == len(json.loads(metadata["token_ids"])) >= 3


def test_a_letter_at_the_start_of_a_long_answer_keeps_its_site() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = "B. " + "He needs a visit and a nurse and a plan. " * 6
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    read = LabelRead(np.log(np.array([0.1, 0.8, 0.1], np.float32)), 1.0, 0.5)
    raw = RawRow(read, {("resid", "prompt_end"): torch.zeros(7, 96)}, (400, "length"), tokens, "end")
    labels = LabelTokens(("A", "B", "C"), ((4,), (5,), (6,)))
    step = _answer_step(tokenizer, labels, raw, parse_answer(text, labels.letters))
    assert step is not None
    assert step.index == 0
    assert step.read is read


def test_an_answer_whose_rivals_have_no_token_keeps_its_residual_and_has_no_read() -> None:
    seen = LabelRead(np.array([-0.1, -2.0, -np.inf], np.float32), 0.9, 0.5)
    step = LetterStep(4, {"resid": torch.ones(7, 96)}, seen)
    raw = RawRow(seen, {("resid", "prompt_end"): torch.zeros(7, 96)}, (9, "length"), [1] * 9, "end")
    settings = PassSettings(residual_points(tuple(range(7))), ("prompt_end", "answer"), 9)
    tokenizer, letters = AutoTokenizer.from_pretrained(CHECKPOINT), ("A", "B", "C")
    backend = load_backend(find_model("organism"), backend="hf", dtype="auto", device="cpu", attention=None)
    vocabulary = LetterVocabulary(tokenizer, letters)
    capturer = Capturer(backend, tokenizer, vocabulary, letters, ("x", "y", "z"), settings, 1, "float32")
    row = PlannedRow(Cell("p", "c", Condition(rotation=1)), 0, "", "", 3)
    job = Job(row, Prompt("", (1, 2, 3), None, None, None, None), LabelTokens(("B", "C", "A"), ((5,), (6,), (4,))))
    positions, values, labels = _sites(capturer, job, raw, step, ForkedSites())
    assert positions == {"prompt_end": 2, "answer": 6}
    assert float(values["resid", "answer"].mean()) == 1.0
    assert "answer" not in labels
    whole = replace(step, read=replace(seen, logp=np.array([-0.1, -2.0, -3.0], np.float32)))
    read = _sites(capturer, job, raw, whole, ForkedSites())[2]["answer"]
    np.testing.assert_allclose(read.logp, [-2.0, -3.0, -0.1])  # in the order of the options, whose letters are B, C, A


def test_rotated_letters_keep_semantic_options(tmp_path: Path) -> None:
    study = organism_study(limit=4, conditions={"rotations": "all"}, personas=[{"id": "none", "text": None}])
    opened = probe.run(study, store=tmp_path / "store")
    table = opened.table()
    assert sorted(set(table["rotation"])) == [0, 1, 2]
    parsed = table[table["status"] == "parsed"]
    for _, row in parsed.iterrows():
        assert "ABC"[("ABC".index(row["y_gen"]) + row["rotation"]) % 3] == row["letter"]
    planned = table.pivot(index="case", columns="rotation", values="planned_logp_A")
    assert (planned[0] == planned[1]).all()  # a plan of options, whatever their letters
    texts = opened.select(where="rotation == 1").texts()["prompt"]
    assert texts.str.contains("A: emergency care. B: stay home or self-care. C: routine or primary care.").all()
