"""Rotations, wordings and seeds through a whole study of a tiny random model: planned, captured, in the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probe
from probe.models import find_model
from probe.models.loading import load_backend
from probe.prompts import load_tokenizer
from probe.study import Study
from probe.values import StoreMismatch
from tests.tiny_models import save_tiny_model

OPTIONS = ("home", "clinic", "hospital")
LETTERS = ("A", "B", "C")
N_CASES = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama", scale=3.0)


def study_of(model: Path, **settings: object) -> Study:
    return Study.from_mapping(
        {
            "name": "tiny",
            "model": {"id": str(model)},
            "personas": [
                {"id": "none", "text": None},
                {"id": "nurse", "wordings": ["You are an ED nurse.", "Act as an ED nurse."]},
            ],
            "task": {
                "id": "t",
                "instruction": "{case}\n{options} Final answer:",
                "options": {"home": "stay home", "clinic": "routine care", "hospital": "ED"},
            },
            "cases": [
                {"id": i, "input": f"A patient aged {20 + 9 * i} reports fever.", "target": OPTIONS[i % 3]}
                | {"metadata": {"category": "fever"} if i else {}}
                for i in range(N_CASES)
            ],
            "capture": {"layers": [0, 3]},
            "generation": {"max_new_tokens": 6},
            **settings,
        }
    )


@pytest.fixture(scope="module")
def rotated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    study = study_of(model, conditions={"rotations": "all", "wordings": "all"})
    return probe.run(study, store=tmp_path_factory.mktemp("rotated") / "store")


def test_every_case_meets_every_mapping_of_letters_under_every_wording(rotated: probe.Store) -> None:
    table = rotated.table()
    assert len(table) == (1 + 2) * N_CASES * 3
    for _, rows in table.groupby(["persona", "wording", "case"]):
        assert sorted(rows["rotation"]) == [0, 1, 2]
    assert {case: rows["category"].iloc[0] for case, rows in table.groupby("case")} == {
        "0": None,
        **{str(i): "fever" for i in range(1, N_CASES)},
    }
    names = set(table["condition"])
    assert {"system", "system/rotation=1", "system/wording=1/rotation=2"} <= names


def test_a_label_read_is_of_the_option_whatever_letter_it_has(model: Path, rotated: probe.Store) -> None:
    backend = load_backend(find_model(str(model)), backend="hf", dtype="auto", device="cpu", attention=None)
    tokenizer = load_tokenizer(model)
    table = rotated.table()
    prompts = rotated.select().texts().set_index("row_id")["prompt"]
    texts = {"home": "stay home", "clinic": "routine care", "hospital": "ED"}
    for _, row in table.iterrows():
        prompt = prompts[row["row_id"]]
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logp = backend.model(ids).logits[0, -1].double().log_softmax(-1)
        for i, option in enumerate(OPTIONS):
            letter = LETTERS[(i + row["rotation"]) % 3]
            assert f"{letter}: {texts[option]}." in prompt
            tokens = [
                tokenizer(prompt + surface, add_special_tokens=False)["input_ids"] for surface in (letter, " " + letter)
            ]
            variants = [found[-1] for found in tokens if found[:-1] == ids[0].tolist()]
            assert len(variants) in (1, 2)
            assert row[f"logp_{option}"] == pytest.approx(float(logp[variants].logsumexp(0)), abs=1e-4)


def test_metrics_over_rotations_are_the_mean_of_the_rotations(rotated: probe.Store) -> None:
    table = rotated.table()

    def accuracy(rows: pd.DataFrame) -> pd.Series:
        rows = rows.copy()
        rows.attrs = dict(table.attrs)
        found = probe.metrics(rows, options=OPTIONS)
        return found[found["metric"] == "accuracy_latent"].set_index("persona")["value"]

    each = [accuracy(table[table["rotation"] == rotation]) for rotation in range(3)]
    pd.testing.assert_series_equal(accuracy(table), sum(each) / 3, check_names=False)


def test_a_model_that_always_prefers_one_letter_has_no_preference_over_all_rotations() -> None:
    rows = []
    for case in range(6):
        for rotation in range(3):
            logp = {f"logp_{option}": -0.1 if (i + rotation) % 3 == 0 else -4.0 for i, option in enumerate(OPTIONS)}
            row = {"case": f"c{case}", "persona": "none", "target": OPTIONS[case % 3], "rotation": rotation}
            rows.append(row | {"condition": f"rotation={rotation}"} | logp)
    table = pd.DataFrame(rows)

    def value(part: pd.DataFrame) -> dict[str, float]:
        found = probe.metrics(part, options=OPTIONS).set_index("metric")["value"]
        return {name: float(found[name]) for name in ("accuracy_latent", "risk_propensity_latent")}

    assert value(table) == {"accuracy_latent": pytest.approx(1 / 3), "risk_propensity_latent": pytest.approx(1 / 3)}
    alone = [value(table[table["rotation"] == rotation])["risk_propensity_latent"] for rotation in range(3)]
    assert sorted(alone) == [0.0, 0.0, 1.0]  # one mapping alone looks like a preference for or against the option


def test_seeds_are_cells_of_their_own_and_more_seeds_continue_the_store(model: Path, tmp_path: Path) -> None:
    warm = {"max_new_tokens": 6, "temperature": 1.5, "seeds": 2}
    path = tmp_path / "store"
    first = probe.run(study_of(model, generation=warm), store=path).table()
    assert sorted(set(first["seed"])) == [1, 2]
    assert len(first) == 2 * 2 * N_CASES
    texts = {seed: rows.sort_values(["persona", "case"]) for seed, rows in first.groupby("seed")}
    np.testing.assert_array_equal(texts[1]["logp_home"], texts[2]["logp_home"])  # the preference needs no draw
    opened = probe.open_store(path)
    answers = {record.cell.row_id: record.gen_tokens for record in opened.select().records()}
    assert len(set(answers.values())) > N_CASES * 2
    more = probe.run(study_of(model, generation={**warm, "seeds": 3}), store=path)
    after = {record.cell.row_id: record.gen_tokens for record in more.select().records()}
    assert len(after) == len(answers) * 3 // 2
    assert {row_id: after[row_id] for row_id in answers} == answers
    alone = probe.run(
        study_of(model, generation=warm, capture={"layers": [0, 3], "batch_size": 1}), store=tmp_path / "b"
    )
    assert {record.cell.row_id: record.gen_tokens for record in alone.select().records()} == answers


def test_how_tokens_are_drawn_is_part_of_a_stores_identity(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    small = {"cases": study_of(model).to_mapping()["cases"][:1]}
    probe.run(study_of(model, generation={"max_new_tokens": 6, "temperature": 1, "top_p": 0.9}, **small), store=path)
    manifest = json.loads((path / "manifest.json").read_text())["generation"]
    assert {key: manifest[key] for key in ("decoding", "temperature", "top_p", "top_k")} == {
        "decoding": "sampling",
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": None,
    }
    for other in (
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1},
        {"temperature": 1, "top_p": 0.9, "top_k": 5},
        {},
    ):
        with pytest.raises(StoreMismatch, match=r"generation\."):
            probe.run(study_of(model, generation={"max_new_tokens": 6, **other}, **small), store=path)
