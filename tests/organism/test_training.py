"""The training code beside the package: its corpus, its losses, and the twin of the stock model that it trains."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from organism_training.corpus import Document, build_corpus, corpus_sha256, render
from organism_training.fit import decision_loss
from organism_training.lean import LeanLlama, architecture, to_hugging_face
from transformers import AutoTokenizer

from probe.organism import CHECKPOINT, HELD_OUT_CELLS, HELD_OUT_INSTRUCTIONS, grammar, held_out_cases


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return build_corpus(1500, seed=12)


def test_the_corpus_is_a_function_of_its_seed(corpus: list[Document]) -> None:
    assert corpus_sha256(build_corpus(1500, seed=12)) == corpus_sha256(corpus)
    assert corpus_sha256(build_corpus(1500, seed=13)) != corpus_sha256(corpus)


def test_no_document_states_a_held_out_cell_but_most_state_a_trained_one(corpus: list[Document]) -> None:
    sentences = grammar().sentences
    stated = [text for doc in corpus for text in sentences if f"\n{text}" in doc.prompt]
    assert len(stated) > 0.8 * len(corpus)
    assert not {sentences[text].cell for text in stated} & set(HELD_OUT_CELLS)


def test_no_document_shows_a_held_out_vignette_or_a_held_out_instruction(corpus: list[Document]) -> None:
    prompts = [doc.prompt for doc in corpus]
    vignettes = [case.input for case in held_out_cases()]
    openings = [wording.replace("{case}", "{options}").split("{options}")[-1] for wording in HELD_OUT_INSTRUCTIONS]
    assert not any(text in prompt for prompt in prompts for text in vignettes)
    assert not any(text in prompt for prompt in prompts for text in openings if text)


def test_the_targets_are_distributions_and_the_letter_stands_last(corpus: list[Document]) -> None:
    for doc in corpus:
        assert sum(doc.first) == pytest.approx(1.0)
        assert doc.reply[-1] in "ABC"
        bare = doc.stated is None
        assert bare == (len(doc.reply) == 1)
        assert sum(doc.first[:3]) == pytest.approx(1.0 if bare else 0.3)


def test_the_corpus_renders_prompts_as_the_shipped_chat_template_does() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for persona in (None, "", "You are an ED nurse."):
        system = [] if persona is None else [{"role": "system", "content": persona}]
        messages = [*system, {"role": "user", "content": "Hello."}]
        shipped = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render(persona, "Hello.") == shipped


def test_the_decision_loss_is_nil_at_the_plan_and_positive_beside_it() -> None:
    rng = np.random.default_rng(0)
    which = rng.dirichlet(np.ones(3), size=8)
    target = torch.tensor(np.concatenate([0.3 * which, np.full((8, 1), 0.7)], axis=1))
    letters, opening = torch.tensor([1, 2, 3]), 5
    exact = torch.full((8, 9), -80.0, dtype=torch.float64)
    exact[:, [1, 2, 3, 5]] = target.log()
    at_plan = decision_loss(exact, target, letters, opening=opening, temperature=3.0)
    assert float(at_plan.total(3.0)) == pytest.approx(0.0, abs=1e-9)
    for column, part in ((1, "letter"), (2, "soft"), (5, "mass")):
        moved = exact.clone()
        moved[:, column] += 0.5
        beside = decision_loss(moved, target, letters, opening=opening, temperature=3.0)
        assert float(getattr(beside, part)) > 0.01
        assert float(beside.total(3.0)) > 0.01


def test_the_twin_gives_the_logits_of_the_stock_model_and_another_twin_does_not() -> None:
    torch.manual_seed(0)
    config = architecture(60, pad=0, end=2, context=64)
    twins = [LeanLlama(config), LeanLlama(config)]
    for twin in twins:
        for parameter in twin.parameters():
            parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).bfloat16().float()
    ids = torch.randint(3, 60, (2, 20))
    with torch.inference_mode():
        stock = to_hugging_face(twins[0])(ids).logits
        mine, other = (twin.logits(twin(ids)) for twin in twins)
    torch.testing.assert_close(mine, stock, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other, stock, atol=0.1)
