"""A model whose own generation configuration would change its answers is read as one without it, on every backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import probe
from probe.models import find_model
from probe.models.loading import load_backend
from probe.study import Study
from tests.capture import matrix_passes
from tests.capture.architectures import KINDS, prompts, save
from tests.tiny_models import save_tiny_model

N_NEW = 12
MEDDLING: dict[str, Any] = {
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 2,
    "do_sample": True,
    "temperature": 0.2,
    "top_k": 2,
    "top_p": 0.5,
    "suppress_tokens": list(range(100, 300)),
    "bad_words_ids": [[7], [8, 9]],
    "forced_bos_token_id": 50,
    "forced_eos_token_id": 60,
    "min_new_tokens": 9,
    "max_new_tokens": 2,
}


def meddled(folder: Path) -> Path:
    """The folder, with every setting that could change what is written."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **MEDDLING}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("generation")
    return {"plain": save("llama", root / "plain"), "meddled": meddled(save("llama", root / "meddled"))}


@pytest.mark.parametrize("kind", KINDS)
def test_label_reads_and_tokens_are_those_of_the_model_without_it(
    folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_passes, "N_NEW", N_NEW)
    found = {}
    for which, folder in folders.items():
        loaded = load_backend(find_model(str(folder)), backend=kind, dtype="float32", device="cpu", attention=None)
        monkeypatch.setattr(matrix_passes, "backend", lambda *_, loaded=loaded: loaded)
        rows = [matrix_passes.row(tokens) for tokens in prompts("llama")]
        found[which] = matrix_passes.run("llama", kind, rows, 3)
        ignored = dict(loaded.facts.shape.ignored)
        assert ignored == (MEDDLING if which == "meddled" else {})
    assert any(raw.tokens for raw in found["plain"])
    for plain, other in zip(found["plain"], found["meddled"], strict=True):
        assert other.tokens == plain.tokens
        assert other.stop == plain.stop
        np.testing.assert_array_equal(other.prompt_read.logp, plain.prompt_read.logp)
        assert other.prompt_read.entropy == plain.prompt_read.entropy


def test_the_penalty_changes_what_generate_writes(folders: dict[str, Path]) -> None:
    """The control: left to itself, ``generate`` applies it."""
    written = {}
    for which, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder)
        written[which] = [
            model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=N_NEW, min_new_tokens=0)[
                0, len(prompt) :
            ].tolist()
            for prompt in prompts("llama")
        ]
    assert written["plain"] != written["meddled"]


def test_a_study_records_what_was_ignored_and_gives_the_same_table(tmp_path: Path) -> None:
    tables, ignored = [], []
    for which in ("plain", "meddled"):
        folder = save_tiny_model(tmp_path / which, "llama", scale=3.0)
        if which == "meddled":
            meddled(folder)
        study = Study.from_mapping(
            {
                "name": "meddled",
                "model": {"id": str(folder)},
                "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
                "task": "builtin:triage",
                "cases": "builtin:triage",
                "limit": 2,
                "generation": {"max_new_tokens": N_NEW},
                "analyses": ["metrics"],
            }
        )
        store = probe.run(study, store=tmp_path / f"{which}-store")
        tables.append(store.table())
        ignored.append(store.runs()[-1]["ignored_generation_config"])
    assert len(tables[0]) == 4
    assert tables[0].equals(tables[1])
    assert ignored == [{}, MEDDLING]
