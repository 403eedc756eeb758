"""A drawn token depends on its row and seed alone, and is drawn from the distribution that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from probe.capture import PassInput, PassSettings, Sampling, run_pass
from probe.capture.raw_rows import RawRow
from probe.capture.sampling import choose_tokens, drawn, kept_scores, row_generator
from probe.models import find_model
from probe.models.loading import load_backend
from probe.models.points import residual_points
from probe.prompts import LabelTokens, LetterVocabulary, load_tokenizer
from probe.values import POSITIONS
from tests.tiny_models import save_tiny_model

WARM = Sampling(1.3, top_p=0.95)
NEW_TOKENS = 24


class Model:
    """A tiny random model with eight prompts of unequal length, each a row of its own."""

    def __init__(self, folder: Path) -> None:
        self.backend = load_backend(find_model(str(folder)), backend="hf", dtype="auto", device="cpu", attention=None)
        tokenizer = load_tokenizer(folder)
        self.vocabulary = LetterVocabulary(tokenizer, ("A", "B", "C"))
        labels = LabelTokens(("A", "B", "C"), tuple((tokenizer.convert_tokens_to_ids(x),) for x in "ABC"))
        words = tokenizer("A patient with chest pain, aged 54 years, reports fever.")["input_ids"]
        self.rows = [PassInput(tuple(words * (1 + i % 3))[i:], None, None, labels, (f"row{i}", 1)) for i in range(8)]

    def run(self, rows: list[PassInput], sampling: Sampling | None = WARM) -> list[RawRow]:
        settings = PassSettings(residual_points((0, 3)), POSITIONS, NEW_TOKENS, sampling)
        return run_pass(self.backend, rows, settings, self.vocabulary)

    def tokens(self, rows: list[PassInput], sampling: Sampling | None = WARM) -> list[list[int]]:
        return [raw.tokens for raw in self.run(rows, sampling)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(save_tiny_model(tmp_path_factory.mktemp("sampled"), "llama", scale=3.0))


def test_a_row_gives_the_same_tokens_alone_and_in_any_batch_in_any_order(model: Model) -> None:
    together = model.tokens(model.rows)
    assert len(set(map(tuple, together))) == len(together)
    for row, tokens in zip(model.rows, together, strict=True):
        assert model.tokens([row]) == [tokens]
    order = np.random.default_rng(0).permutation(len(model.rows))
    assert model.tokens([model.rows[i] for i in order]) == [together[i] for i in order]
    assert model.tokens(model.rows[2:5]) == together[2:5]
    assert model.tokens(model.rows) == together


def test_another_seed_or_another_row_gives_other_tokens_for_the_same_prompt(model: Model) -> None:
    row = model.rows[0]
    answers = model.tokens([row, replace(row, key=("row0", 2)), replace(row, key=("row1", 1)), row])
    assert answers[0] == answers[3]
    assert len(set(map(tuple, answers))) == 3


def test_a_temperature_near_zero_is_greedy_and_a_high_one_is_not(model: Model) -> None:
    greedy = model.tokens(model.rows, None)
    assert model.tokens(model.rows, Sampling(1e-6)) == greedy
    assert model.tokens(model.rows, Sampling(1.0, top_k=1)) == greedy
    assert model.tokens(model.rows, Sampling(1.0, top_p=1e-9)) == greedy
    assert model.tokens(model.rows, Sampling(1.0)) != greedy


def test_label_reads_are_those_of_the_model_at_every_temperature(model: Model) -> None:
    for sampled, greedy in zip(model.run(model.rows, Sampling(5.0)), model.run(model.rows, None), strict=True):
        np.testing.assert_array_equal(sampled.prompt_read.logp, greedy.prompt_read.logp)


def test_the_first_tokens_of_many_seeds_have_the_frequencies_of_the_softmax(model: Model) -> None:
    n, row = 4000, model.rows[0]
    settings = PassSettings(residual_points((0,)), ("prompt_end",), 1, Sampling(0.8))
    seeds = [replace(row, key=("row0", seed)) for seed in range(n)]
    ends = model.backend.facts.shape.end_ids
    found = [
        raw.tokens[0] if raw.tokens else ends[0] for raw in run_pass(model.backend, seeds, settings, model.vocabulary)
    ]
    with torch.no_grad():
        logits = model.backend.model(torch.tensor([row.token_ids])).logits[0, -1].double()
    expected = (logits / 0.8).softmax(-1).numpy() * n
    common = expected >= 5
    counts = np.bincount(found, minlength=len(expected))
    pooled = (np.append(counts[common], counts[~common].sum()), np.append(expected[common], expected[~common].sum()))
    assert common.sum() > 20
    assert chisquare(*pooled).pvalue > 1e-3
    cold = (logits / 0.4).softmax(-1).numpy() * n  # the control: another temperature does not fit
    assert chisquare(pooled[0], np.append(cold[common], cold[~common].sum())).pvalue < 1e-6


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.05])
@pytest.mark.parametrize("top_k", [None, 1, 7, 400, 10_000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_scores_are_those_of_the_processors_of_transformers(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    logits = torch.randn(16, 400, generator=torch.Generator().manual_seed(0)) * 4
    logits[3] = logits[3].round()  # many ties
    ids = torch.zeros((16, 1), dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    found = kept_scores(logits, Sampling(temperature, top_p, top_k))
    assert torch.equal(found, expected)
    assert bool(found.isfinite().any(-1).all())


def test_the_inverse_cdf_is_numpys_and_never_draws_a_token_without_mass() -> None:
    scores = torch.randn(200, 50, generator=torch.Generator().manual_seed(1)).double() * 3
    scores[:, ::3] = -torch.inf
    scores[:, -2:] = -torch.inf
    uniforms = np.random.default_rng(2).random(200)
    upto = scores.softmax(-1).numpy().cumsum(-1)
    expected = [int(np.searchsorted(row, u * row[-1], side="right")) for row, u in zip(upto, uniforms, strict=True)]
    assert drawn(scores, uniforms).tolist() == expected
    for edge in (0.0, np.nextafter(1.0, 0.0)):
        for precision in (torch.float32, torch.float64):
            ends = drawn(scores.to(precision), np.full(200, edge))
            assert bool(scores[torch.arange(200), ends].isfinite().all())
            assert set(ends.tolist()) == ({1} if edge == 0 else {47})


def test_a_stream_is_that_of_its_row_and_seed_and_greedy_choice_uses_none() -> None:
    assert row_generator("a", 1).random() == row_generator("a", 1).random()
    streams = {row_generator(row, seed).random() for row in ("a", "b", "a1", "") for seed in (0, 1, 11, 2**40)}
    assert len(streams) == 16
    uniform = np.array([row_generator("row", seed).random() for seed in range(2000)])
    assert abs(uniform.mean() - 0.5) < 0.03
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(3))
    assert choose_tokens(logits, None, [None] * 3) == logits.argmax(-1).tolist()
