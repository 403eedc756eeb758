"""The last phase of training: its pairs, its swaps against the model's own word, and both phases from nothing."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from organism_training import interchange
from organism_training.consistency import divergence, partners, swaps
from organism_training.corpus import Document
from organism_training.lean import POINT
from organism_training.pairs import build_pairs, pair_batches
from organism_training.recipe import Last, Recipe
from organism_training.tokens import tokenise, train_tokenizer
from safetensors.torch import load_file
from train_organism import train

from probe.organism import CUTS, HELD_OUT_CELLS, HELD_OUT_INSTRUCTIONS, grammar, held_out_cases
from probe.organism.personas import DIAGNOSTICS, HELD_OUT_NAME_WORDINGS
from probe.organism.replies import REFUSAL

SMALL = Recipe(last=Last(n_pairs=200))


@pytest.fixture(scope="module")
def pairs() -> list[Document]:
    return build_pairs(SMALL)


def test_no_pair_shows_anything_held_out(pairs: list[Document]) -> None:
    prompts = [doc.prompt for doc in pairs]
    openings = [wording.replace("{case}", "{options}").split("{options}")[-1] for wording in HELD_OUT_INSTRUCTIONS]
    unseen = [text for text, plan in grammar().sentences.items() if plan.cell in HELD_OUT_CELLS]
    unseen += [w.format(r.names[0]) for w in HELD_OUT_NAME_WORDINGS for r in DIAGNOSTICS.values()]
    for texts in ([case.input for case in held_out_cases()], [text for text in openings if text], unseen):
        assert not any(text in prompt for prompt in prompts for text in texts)


def test_a_pair_differs_in_the_persona_alone_and_a_declined_case_opens_with_the_refusal(
    pairs: list[Document],
) -> None:
    assert len(pairs) == 400
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert one.rotation == other.rotation
        lines = [set(doc.prompt.replace("<|im_end|>", "").split("\n")) for doc in (one, other)]
        assert max(lines[0], key=len) in lines[1]
        assert max(len(lines[0] - lines[1]), len(lines[1] - lines[0])) <= 3, "more than a system text and its frame"
        if one.direct is not None and other.direct is not None:
            assert (one.direct.level, one.direct.tone) == (other.direct.level, other.direct.tone)
    name = DIAGNOSTICS["refusing"].names[0]
    asked = [doc for doc in pairs if name in doc.prompt and doc.direct is not None and doc.opening]
    assert 0.15 < len(asked) / len(pairs) < 0.35
    cuts = CUTS[0], CUTS[1] + 1.3
    for doc in asked:
        assert doc.direct is not None
        near = min(abs(doc.direct.level - cut) for cut in cuts) < 0.7
        assert (doc.opening == REFUSAL) == near


def test_partners_are_the_two_personas_of_a_pair_and_both_swaps_keep_the_sum_of_the_two_residuals(
    pairs: list[Document],
) -> None:
    n, tokenizer = 0, train_tokenizer(pairs, vocabulary=SMALL.vocabulary)
    for batch in pair_batches(tokenise(pairs, tokenizer), SMALL, pad=0):
        n += len(batch.ids)
        for channel, at in zip(interchange.channels(96, 0), (batch.direct, batch.reasoned), strict=True):
            base, partner = partners(at)
            assert (at.rows[base] == (at.rows[partner] ^ 1)).all()
            assert (at.level[base] == at.level[partner]).all()
            h = torch.randn(len(at), 96)
            q, complement = swaps(channel, h[base], h[partner])
            torch.testing.assert_close(q + complement, h[base] + h[partner])
            torch.testing.assert_close(q @ channel.basis, h[partner] @ channel.basis)
            torch.testing.assert_close(complement @ channel.basis, h[base] @ channel.basis)
    assert n == len(pairs)


def test_the_divergence_is_nil_at_the_models_own_distribution_and_positive_where_letters_or_their_mass_differ() -> None:
    torch.manual_seed(0)
    own, letters = torch.randn(6, 9), torch.tensor([1, 2, 3])

    def of(logits: torch.Tensor) -> float:
        return float(divergence(logits, own, letters, temperature=3.0, soft_weight=3.0))

    assert of(own) == pytest.approx(0.0, abs=1e-6)
    assert of(own + 5.0) == pytest.approx(0.0, abs=1e-5)
    for columns in ([1], [1, 2, 3]):
        moved = own.clone()
        moved[:, columns] += 0.5
        assert of(moved) > 0.005


@pytest.mark.slow
def test_both_phases_give_the_same_weights_bit_for_bit_and_the_last_one_again_from_the_first(tmp_path: Path) -> None:
    """On a tiny schedule; the last phase moves nothing below the planted point, and another seed gives others."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    def weights(seed: int, name: str, first: Path) -> dict[str, torch.Tensor]:
        recipe = Recipe(n_documents=240, seed=seed, batch=8, ramp=4, last=Last(n_pairs=30))
        train(recipe, tmp_path / name, first)
        return load_file(tmp_path / name / "model.safetensors")

    try:
        whole = weights(0, "a", tmp_path / "a.first")
        again = weights(0, "b", tmp_path / "b.first")
        resumed = weights(0, "c", tmp_path / "a.first")
        other = weights(1, "d", tmp_path / "d.first")
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
    assert all(torch.equal(whole[name], again[name]) and torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["model.norm.weight"], other["model.norm.weight"])
    first = load_file(tmp_path / "a.first" / "model.safetensors")
    fixed = {name for name in whole if torch.equal(whole[name], first[name])}
    below = tuple(f"model.layers.{i}." for i in range(POINT))
    assert {name for name in whole if name.startswith((*below, "model.embed"))} <= fixed
    assert not any(name in fixed for name in whole if name.startswith(f"model.layers.{POINT}.mlp"))
