"""The answer sites for which the organism was trained: a forced beginning of the answer, the end of a think block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probe
from probe.organism import THINK_INSTRUCTIONS, triage_task
from probe.study import Study

FORCED = "Final answer: "


def captured(folder: Path, **settings: object) -> probe.Store:
    study = Study.from_mapping(
        {
            "name": "sites",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "cautious", "text": "You are a cautious ED physician."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "capture": {"layers": [0]},
            "labels": {"sites": ["prompt_end", "forced", "answer", "after_reasoning"], "forced": FORCED},
            "generation": {"max_new_tokens": 120},
            "limit": 8,
            **settings,
        }
    )
    return probe.run(study, store=folder / "store")


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    task = {
        "id": "thinking",
        "instruction": THINK_INSTRUCTIONS[0],
        "options": {option.id: option.text for option in triage_task().options},
    }
    # The instruction names the tags, which are tokens of this tokenizer.
    return captured(tmp_path_factory.mktemp("thinking"), task=task, capture={"layers": [0], "special_tokens": "tags"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    return captured(tmp_path_factory.mktemp("plain"))


def labels(store: probe.Store, site: str) -> np.ndarray:
    table = store.table()
    return np.exp(table[[f"{site}_logp_{option}" for option in "ABC"]].to_numpy(dtype=float))


def test_after_a_forced_beginning_the_organism_says_a_letter_and_mostly_the_latent_one(plain: probe.Store) -> None:
    forced, table = labels(plain, "forced"), plain.table()
    assert forced.sum(axis=1).min() > 0.95
    assert table["label_mass"].max() < 0.6  # the control: without it, it mostly begins to explain
    same = np.array(list("ABC"))[forced.argmax(axis=1)] == table["y_latent"]
    assert same.mean() >= 0.85


def test_the_end_of_a_think_block_is_read_and_says_what_the_answer_then_states(
    thinking: probe.Store, plain: probe.Store
) -> None:
    table, after = thinking.table(), labels(thinking, "after_reasoning")
    closed = np.isfinite(after).all(axis=1)
    assert closed.mean() >= 0.9
    assert after[closed].sum(axis=1).min() > 0.9
    np.testing.assert_allclose(after[closed], labels(thinking, "stated")[closed], atol=1e-4)
    assert (np.array(list("ABC"))[after[closed].argmax(axis=1)] == table["y_gen"][closed]).all()
    assert all(text.startswith("<think>") for text in thinking.select().texts()["gen_text"][closed])
    assert not any(name.startswith("after_reasoning") for name in plain.table().dropna(axis=1, how="all"))
