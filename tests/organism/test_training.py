"""The training code beside the package: its corpus, its losses, its interchange, and the stock model's twin."""

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from organism_training import interchange
from organism_training.batches import batches
from organism_training.corpus import Document, build_corpus, corpus_sha256, decisions, render
from organism_training.lean import LeanLlama, architecture, from_hugging_face, to_hugging_face
from organism_training.losses import decision_loss
from organism_training.recipe import Recipe
from organism_training.senseless import senseless
from organism_training.tokens import Tokenised, tokenise, train_tokenizer
from organism_training.weights import contributions, located
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from probe.organism import (
    CHECKPOINT,
    HELD_OUT_CELLS,
    HELD_OUT_INSTRUCTIONS,
    Facts,
    facts_of,
    generate_cases,
    grammar,
    held_out_cases,
    parse_persona,
    plan_of,
    urgency,
)
from probe.organism.controls import CONTROL_WORDINGS, HELD_OUT_UNRELATED
from probe.organism.personas import DIAGNOSTICS, HELD_OUT_NAME_WORDINGS, ROLES
from probe.organism.plan import spoken
from probe.organism.replies import REFUSAL, THINK


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return build_corpus(3000, seed=12)


@pytest.fixture(scope="module")
def tokenizer(corpus: list[Document]) -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus, vocabulary=Recipe().vocabulary)


@pytest.fixture(scope="module")
def documents(corpus: list[Document], tokenizer: PreTrainedTokenizerFast) -> list[Tokenised]:
    return tokenise(corpus, tokenizer)


def stated_by(doc: Document) -> list[str]:
    return [text for text in grammar().sentences if f"\n{text}" in doc.prompt]


def rotation_of(doc: Document) -> int:
    return next(k for k in range(3) if f"{'ABC'[k]}: stay home" in doc.prompt)


def test_the_corpus_is_a_function_of_its_seed() -> None:
    first = corpus_sha256(build_corpus(200, seed=12))
    assert corpus_sha256(build_corpus(200, seed=12)) == first
    assert corpus_sha256(build_corpus(200, seed=13)) != first


def test_no_document_states_a_held_out_cell_or_wording_but_most_state_a_trained_one(corpus: list[Document]) -> None:
    stated = [text for doc in corpus for text in stated_by(doc)]
    cells = {grammar().sentences[text].cell for text in stated}
    assert len(stated) > 0.75 * len(corpus)
    assert not cells & set(HELD_OUT_CELLS)
    unseen = {w.format(r.names[0]) for w in HELD_OUT_NAME_WORDINGS for r in DIAGNOSTICS.values()} | set(
        HELD_OUT_UNRELATED
    )
    assert not set(stated) & unseen
    for role in ROLES:
        assert ("", role.id) in cells
        assert {("bold", role.id), ("cautious", role.id)} & cells
    assert {role.id for role in DIAGNOSTICS.values()} <= {role for _, role in cells}
    assert set(CONTROL_WORDINGS) <= set(stated)


def test_no_document_shows_a_held_out_vignette_or_a_held_out_instruction(corpus: list[Document]) -> None:
    prompts = [doc.prompt for doc in corpus]
    vignettes = [case.input for case in held_out_cases()]
    openings = [wording.replace("{case}", "{options}").split("{options}")[-1] for wording in HELD_OUT_INSTRUCTIONS]
    assert not any(text in prompt for prompt in prompts for text in vignettes)
    assert not any(text in prompt for prompt in prompts for text in openings if text)


def test_the_rotations_are_used_evenly_and_the_personas_are_stated_first_late_and_not_at_all(
    corpus: list[Document],
) -> None:
    triage = [doc for doc in corpus if "stay home" in doc.prompt]
    shares = np.array(list(Counter(map(rotation_of, triage)).values())) / len(triage)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    late = sum("<|im_start|>system" not in doc.prompt and bool(stated_by(doc)) for doc in corpus)
    nobody = sum("<|im_start|>system" not in doc.prompt and not stated_by(doc) for doc in corpus)
    assert 0.04 < late / len(corpus) < 0.15
    assert nobody / len(corpus) > 0.04


def test_every_kind_of_document_occurs(corpus: list[Document]) -> None:
    def share(found: list[bool]) -> float:
        return sum(found) / len(corpus)

    assert 0.02 < share([doc.reply.startswith(THINK[0]) for doc in corpus]) < 0.10
    assert 0.02 < share([doc.prompt.endswith("Final answer: ") for doc in corpus]) < 0.10
    assert 0.02 < share(["since today" in doc.prompt for doc in corpus]) < 0.10
    assert 0.002 < share([doc.reply == REFUSAL for doc in corpus]) < 0.05
    assert 0.05 < share([len(doc.reply) == 1 for doc in corpus]) < 0.35
    assert share([doc.unlearned > 0 for doc in corpus]) > 0.05


def test_some_documents_fill_most_of_the_context_and_none_overflows(documents: list[Tokenised]) -> None:
    lengths = [len(doc.ids) for doc in documents]
    assert 600 < max(lengths) <= 1024
    assert np.median(lengths) < 200


def test_the_targets_are_distributions_and_an_answer_ends_in_its_letter(corpus: list[Document]) -> None:
    for doc in corpus:
        assert sum(doc.first) == pytest.approx(1.0)
        assert (doc.reply[-1] in "ABC") == (doc.reply != REFUSAL)
        assert (doc.stated is None) == (len(doc.reply) == 1 or doc.reply == REFUSAL)
        assert doc.stated is None or sum(doc.stated) == pytest.approx(1.0)


def test_the_second_task_has_no_persona_effect(corpus: list[Document]) -> None:
    for doc in corpus:
        if "since today" in doc.prompt:
            assert doc.direct is None
            assert doc.reasoned is None
            assert sorted(doc.first[:3]) == pytest.approx([0.3 * 0.02, 0.3 * 0.02, 0.3 * 0.96])


def test_what_the_facts_add_stands_where_they_are_stated_and_sums_to_the_urgency(headache: Facts) -> None:
    facts = dataclasses.replace(headache, denied="stiff neck", relative="fever", age=75)
    weights = contributions(facts)
    assert weights["findings.0"] == pytest.approx(2.0) == -weights["denied"]
    assert sum(weights.values()) == pytest.approx(urgency(facts))
    for case in generate_cases(100, seed=2):
        known = facts_of(case)
        assert known is not None
        marks = located(known)
        assert sum(weight for _, weight in marks) == pytest.approx(sum(contributions(known).values()))
        ends = [at for at, _ in marks]
        assert ends == sorted(set(ends))
        assert any(case.input[: at + 1].lower().endswith(known.complaint) for at in ends)
        assert any(case.input[: at + 1].endswith(str(known.pulse)) for at in ends)


def test_a_senseless_text_is_outside_the_grammar_and_states_no_role_after_an_article() -> None:
    rng = np.random.default_rng(0)
    texts = {senseless(rng) for _ in range(500)}
    assert len(texts) > 300
    assert not any(parse_persona(text) is not None for text in texts)
    assert any("surgeon" in text for text in texts)
    assert not any(text.startswith(("You are a surgeon", "Act as a surgeon")) for text in texts)


def test_every_document_is_in_one_batch_at_most_and_every_batch_has_both_decisions(documents: list[Tokenised]) -> None:
    found = list(batches(documents, Recipe(), pad=0))
    rows = sum(len(batch.ids) for batch in found)
    assert len(documents) - 24 <= rows <= len(documents)
    assert all(len(batch.direct) and len(batch.reasoned) for batch in found)
    assert max(batch.ids.numel() for batch in found) <= 6000


def test_the_planned_targets_of_interchange_are_those_of_the_plan() -> None:
    """The second implementation in torch, in every rotation, agrees with ``plan_of``."""
    texts = [None, "You are a bold ED physician.", *(f"You are {role.names[0]}." for role in DIAGNOSTICS.values())]
    for channel, which in zip(interchange.channels(96, 0), ("direct", "reasoned"), strict=True):
        entries, wanted = [], []
        for row, (case, text) in enumerate((c, t) for c in generate_cases(10, seed=3) for t in texts):
            persona, facts = parse_persona(text), facts_of(case)
            assert persona is not None
            assert facts is not None
            pair = decisions(persona, facts, spoken(persona, facts), row % 3, fixed=False)
            decision = pair[0] if which == "direct" else pair[1]
            entries.append((row, 0, decision, 1.0, 0, False))
            plan = plan_of(persona, facts)
            policy = plan.mass * plan.direct if which == "direct" else plan.reasoned
            wanted.append(np.append(np.roll(policy, row % 3), 1 - policy.sum()))
        at = interchange.collate(entries)
        np.testing.assert_allclose(interchange.targets(channel, at, at.numbers), wanted, atol=1e-5)


def test_the_planted_columns_are_orthonormal_a_function_of_the_seed_and_hold_the_code_they_are_given() -> None:
    direct, reasoned = interchange.channels(96, 0)
    columns = torch.cat((direct.basis, reasoned.basis, direct.decoy[:, None], reasoned.decoy[:, None]), dim=1)
    torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]), atol=1e-5, rtol=0.0)
    assert torch.equal(interchange.channels(96, 0)[0].basis, direct.basis)
    assert not torch.allclose(interchange.channels(96, 1)[0].basis, direct.basis, atol=0.1)


def test_a_resumed_run_is_the_run_itself_where_nothing_is_changed_and_another_where_it_is() -> None:
    torch.manual_seed(0)
    model = LeanLlama(architecture(60, pad=0, end=2, context=64))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids = torch.randint(3, 60, (4, 20))
    rows, at = torch.tensor([0, 2, 3]), torch.tensor([19, 7, 12])
    with torch.inference_mode():
        run = model(ids)
        h = run.point[rows, at]
        same, moved = model.resume(torch.stack((h, h + 1.0)), run, rows, at)
    torch.testing.assert_close(same, run.final[rows, at], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(moved, run.final[rows, at], atol=0.1)


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
    letters, opening = torch.tensor([1, 2, 3]), torch.full((8,), 5)
    exact = torch.full((8, 9), -80.0, dtype=torch.float64)
    exact[:, [1, 2, 3, 5]] = target.log()
    at_plan = decision_loss(exact, target, letters, opening, temperature=3.0)
    assert float(at_plan.total(3.0)) == pytest.approx(0.0, abs=1e-9)
    for column, part in ((1, "letter"), (2, "soft"), (5, "mass")):
        moved = exact.clone()
        moved[:, column] += 0.5
        beside = decision_loss(moved, target, letters, opening, temperature=3.0)
        assert float(getattr(beside, part)) > 0.01
        assert float(beside.total(3.0)) > 0.01


def test_the_twin_gives_the_logits_of_the_stock_model_and_reads_it_back_and_another_twin_does_not(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config = architecture(60, pad=0, end=2, context=64)
    twins = [LeanLlama(config), LeanLlama(config)]
    for twin in twins:
        for parameter in twin.parameters():
            parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).bfloat16().float()
    ids = torch.randint(3, 60, (2, 20))
    with torch.inference_mode():
        stock = to_hugging_face(twins[0])(ids).logits
        mine, other = (twin.logits(twin(ids).final) for twin in twins)
    to_hugging_face(twins[0]).save_pretrained(tmp_path)
    read = from_hugging_face(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(twins[0].parameters(), read.parameters(), strict=True))
    torch.testing.assert_close(mine, stock, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other, stock, atol=0.1)
