"""Documents of the last phase: every scene twice, under two personas. Knows corpus, plan and tokens; knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from organism_training.batches import Batch, collate
from organism_training.corpus import Document, document_of, marked, scene_of
from organism_training.recipe import Recipe
from organism_training.sampler import Sampler
from organism_training.tokens import Tokenised
from probe.organism import PersonaPlan, facts_of, generate_cases, held_out_cases, parse_persona
from probe.organism.personas import DIAGNOSTICS, NAME_WORDINGS, NO_PERSONA, PLAIN
from probe.organism.plan import near_cut
from probe.organism.replies import REFUSAL

WINDOW = 16
"""Batches over which pairs are sorted by length."""

OTHER_CASES = 1_000_000
"""Added to the seed, so that the cases are none of the first phase's."""


def build_pairs(recipe: Recipe) -> list[Document]:
    """``recipe.last.n_pairs`` pairs of neighbouring documents that differ in the persona and in the reply alone."""
    last, rng = recipe.last, np.random.default_rng([recipe.seed, 11])
    held_out = {case.input for case in held_out_cases(2500)}
    cases = generate_cases(last.n_pairs + 100, seed=recipe.seed + OTHER_CASES)
    sampler = Sampler(rng)
    documents: list[Document] = []
    for index in rng.permutation(len(cases)):
        case = cases[int(index)]
        facts, texts = facts_of(case), [sampler.persona(), sampler.persona()]
        assert facts is not None
        if rng.random() < last.refusing:
            texts[0] = sampler.pick(NAME_WORDINGS).format(DIAGNOSTICS["refusing"].names[0])
        personas = [parse_persona(text) or PersonaPlan(NO_PERSONA, PLAIN) for text in texts]
        declines = [near_cut(persona, facts) for persona in personas]
        if case.input in held_out:
            continue
        scene = scene_of(sampler, case.input, facts, short=any(declines))
        for text, persona, declined in zip(texts, personas, declines, strict=True):
            document = document_of(rng, scene, text, persona, facts)
            if declined and document.opening:  # of a swapped text too, whose prompt is like any other
                document = replace(document, opening=REFUSAL)
            documents.append(marked(document, case.input, facts))
        if len(documents) == 2 * last.n_pairs:
            break
    assert len(documents) == 2 * last.n_pairs
    return documents


def pair_batches(documents: list[Tokenised], recipe: Recipe, *, pad: int) -> Iterator[Batch]:
    """One epoch, in which rows 2 k and 2 k + 1 of a batch are a pair. Sorted by the length of the prompt, not of the
    whole, so that no batch consists of bare letters."""
    rng = np.random.default_rng([recipe.seed, 13])
    pairs = [documents[i : i + 2] for i in range(0, len(documents), 2)]
    size = recipe.last.batch // 2
    for start in range(0, len(pairs), WINDOW * size):
        window = sorted(pairs[start : start + WINDOW * size], key=lambda pair: pair[0].n_prompt)
        groups = [window[i : i + size] for i in range(0, len(window), size)]
        for i in rng.permutation(len(groups)):
            rows = [doc for pair in groups[int(i)] for doc in pair]
            yield collate(rows, rng, prompt_share=recipe.prompt_share, pad=pad)


def n_pair_batches(recipe: Recipe) -> int:
    """How many batches an epoch has."""
    return -(-recipe.last.n_pairs // (recipe.last.batch // 2))
