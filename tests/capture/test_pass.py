"""One pass gives what two separate ones give: the residuals of a plain forward and the tokens of ``generate``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, set_seed

from probe.capture import PassInput, PassSettings, run_pass
from probe.capture.raw_rows import KEPT_STEPS, RawRow
from probe.models import find_model
from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.models.points import residual_points
from probe.prompts import LabelTokens, LetterVocabulary, PromptBuilder, label_tokens, load_tokenizer
from probe.values import POSITIONS, Case, Condition, Option, Task
from tests.tiny_models import FAMILIES, NO_SYSTEM, save_tiny_model

TASK = Task(
    "triage",
    ("{case}\n\n{options} Final answer: X.",),
    (Option("self_care", "stay home"), Option("routine", "routine care"), Option("emergency", "emergency")),
    ("A", "B", "C"),
    "emergency",
)
NEW_TOKENS = 20
FOLLOWING = [family for family in FAMILIES if family != "mamba2"]


class Scene:
    """A tiny model with prompts of unequal length."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        backend = load_backend(find_model(str(folder)), backend="hf", dtype="auto", device="cpu", attention=None)
        assert isinstance(backend, HFBackend)
        self.backend = backend
        self.builder = PromptBuilder(self.tokenizer, TASK)
        condition = Condition(placement=self.builder.resolve_placement("auto"))
        cases = [Case(str(i), "A patient with chest pain, " + "54 years. " * (1 + 4 * i), "routine") for i in range(5)]
        self.prompts = [self.builder.build("You are an ED nurse.", case, condition) for case in cases]
        self.rows = [
            PassInput(p.token_ids, p.persona_end, p.case_tokens, label_tokens(self.tokenizer, p.text, TASK.letters))
            for p in self.prompts
        ]
        self.layers = tuple(range(backend.facts.shape.n_layers + 1))
        self.settings = PassSettings(residual_points(self.layers), POSITIONS, NEW_TOKENS)
        self.vocabulary = LetterVocabulary(self.tokenizer, TASK.letters)

    def run(self, rows: list[PassInput]) -> list[RawRow]:
        return run_pass(self.backend, rows, self.settings, self.vocabulary)


@pytest.fixture(scope="module", params=FOLLOWING)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    family = str(request.param)
    folder = tmp_path_factory.mktemp(family)
    options = {"template": NO_SYSTEM} if family == "gemma2" else {}
    return Scene(save_tiny_model(folder, family, scale=3.0, **options))


def test_a_batch_equals_its_rows_run_alone(scene: Scene) -> None:
    together = scene.run(scene.rows)
    for row, raw in zip(scene.rows, together, strict=True):
        alone = scene.run([row])[0]
        assert raw.tokens == alone.tokens
        assert raw.stop == alone.stop
        assert set(raw.values) == set(alone.values)
        for place, value in raw.values.items():
            scale = float(alone.values[place].abs().max())
            assert float((value - alone.values[place]).abs().max()) <= 1e-5 * scale, place
        np.testing.assert_allclose(raw.prompt_read.logp, alone.prompt_read.logp, atol=1e-4)


def test_the_pass_equals_a_plain_forward_and_generate(scene: Scene) -> None:
    model, shape = scene.backend.model, scene.backend.facts.shape
    model.generation_config = GenerationConfig()
    together = scene.run(scene.rows)
    for row, raw in zip(scene.rows, together, strict=True):
        ids = torch.tensor([row.token_ids])
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(shape.end_ids),
            pad_token_id=shape.pad_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = [t for t in generated.sequences[0, ids.shape[1] :].tolist() if t not in shape.end_ids]
        assert raw.tokens == tokens
        logp = generated.logits[0][0].float().log_softmax(-1)
        expected = [float(logp[list(variants)].logsumexp(0)) for variants in row.labels.ids]
        np.testing.assert_allclose(raw.prompt_read.logp, expected, atol=1e-4)
        assert raw.prompt_read.mass == pytest.approx(np.exp(expected).sum(), abs=1e-5)
        assert raw.prompt_read.entropy == pytest.approx(float(-(logp.exp() * logp).sum()), abs=1e-3)
        check_sites(scene, row, raw)


def check_sites(scene: Scene, row: PassInput, raw: RawRow) -> None:
    """Every site against ``output_hidden_states`` of one forward over prompt and answer."""
    ids = torch.tensor([[*row.token_ids, *raw.tokens]])
    states = scene.backend.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    n_prompt = len(row.token_ids)
    assert row.persona_end is not None
    assert row.case_tokens is not None
    for layer in scene.layers[:-1]:
        here = states[layer][0]
        expected = {
            "prompt_end": here[n_prompt - 1],
            "persona_end": here[row.persona_end],
            "case_mean": here[slice(*row.case_tokens)].mean(0),
            "response_mean": here[n_prompt:].mean(0),
        }
        for position, value in expected.items():
            got, scale = raw.values["resid", position][layer], float(here.abs().max())
            assert float((got - value).abs().max()) <= 2e-5 * scale, (position, layer)
        for step in raw.letter_steps:
            at = here[n_prompt - 1 + step.index]
            assert float((step.values["resid"][layer] - at).abs().max()) <= 2e-5 * float(here.abs().max())


def test_a_neighbouring_position_would_be_noticed(scene: Scene) -> None:
    """The control of the comparison above: an off-by-one is far outside its tolerance."""
    row = scene.rows[-1]
    raw = scene.run([row])[0]
    states = scene.backend.model(
        input_ids=torch.tensor([row.token_ids]), output_hidden_states=True, use_cache=False
    ).hidden_states
    last = len(scene.layers) - 2
    wrong = states[last][0, -2]
    assert float((raw.values["resid", "prompt_end"][last] - wrong).abs().max()) > 1e-2 * float(wrong.abs().max())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    set_seed(0)
    return Scene(save_tiny_model(tmp_path_factory.mktemp("small"), "llama", scale=3.0))


def every_token_is_a_letter(scene: Scene) -> LetterVocabulary:
    vocabulary = LetterVocabulary(scene.tokenizer, TASK.letters)
    size = scene.backend.facts.shape.vocab
    for token in range(size):
        vocabulary._found.setdefault(token, (scene.tokenizer.convert_ids_to_tokens(token) or "x", 0, 1))
    return vocabulary


def test_only_the_newest_letter_steps_are_kept_and_all_are_counted(small: Scene) -> None:
    raw = run_pass(small.backend, small.rows, small.settings, every_token_is_a_letter(small))
    for row in raw:
        assert row.n_letter_steps >= len(row.tokens) - 1  # the first token's step is the end of the prompt
        kept = [step.index for step in row.letter_steps]
        assert kept == list(range(1, row.n_letter_steps + 1))[-KEPT_STEPS:]
    assert all(row.n_letter_steps < len(row.tokens) - 1 for row in small.run(small.rows) if row.tokens)


def test_articles_give_way_before_letters_do(small: Scene) -> None:
    class Articles(LetterVocabulary):
        def is_word(self, token_id: int) -> bool:
            return token_id % 2 == 0

    vocabulary = Articles(small.tokenizer, TASK.letters)
    vocabulary._found = every_token_is_a_letter(small)._found
    for row in run_pass(small.backend, small.rows, small.settings, vocabulary):
        words = [index for index, token in enumerate(row.tokens) if index and token % 2 == 0]
        letters = [index for index, token in enumerate(row.tokens) if index and token % 2]
        kept = [step.index for step in row.letter_steps]
        assert [index for index in kept if index in letters] == letters[-KEPT_STEPS:] or len(letters) > KEPT_STEPS
        assert len(kept) == min(KEPT_STEPS, len(words) + len(letters))


def test_new_tokens_stop_at_the_cap_or_at_the_context(small: Scene) -> None:
    room = 3
    context = small.backend.facts.shape.context
    assert context is not None
    long = (small.rows[0].token_ids * 100)[: context - room]
    labels = LabelTokens(TASK.letters, ((1,), (2,), (3,)))
    rows = [small.rows[0], PassInput(long, None, None, labels)]
    short, full = small.run(rows)
    if short.stop != "end":
        assert (short.stop, len(short.tokens)) == ("length", NEW_TOKENS)
    if full.stop != "end":
        assert (full.stop, len(full.tokens)) == ("context", room)
    assert not full.at("persona_end")
    assert not full.at("case_mean")
