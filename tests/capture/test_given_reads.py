"""A given text is read as if the row had written it, and every token's log-probability is that of a plain forward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.capture import Job, plan_jobs
from probe.capture.given_answers import GivenAnswer
from probe.prompts import Reopening
from probe.values import Cell, CellRecord, Condition, GivenText, PlannedRow, RowRefused
from tests.capture.site_scene import SiteScene
from tests.tiny_models import CHATML

TEXTS = ("The answer is C.", "I think A patient should stay home. Final answer: A", "B")


@pytest.fixture(scope="module", params=["gemma2"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SiteScene:
    given = [GivenText(str(k), "texts", text) for k, text in enumerate(TEXTS)]
    given += [
        GivenText("0", "cut", "The answer is C. Or", cut=True),
        GivenText("0", "special", "C<|im_end|>\n"),
        GivenText("0", "inside", "I think C. Final answer: C"),
        GivenText("0", "turned", "The answer is A.", rotation=1),
        GivenText("0", "tokens", "whatever", token_ids=(40, 41, 42)),
    ]
    return SiteScene(tmp_path_factory.mktemp("model"), str(request.param), given=given)


def captured(scene: SiteScene, persona: str) -> list[tuple[Job, CellRecord]]:
    jobs = scene.jobs(persona, given="texts")
    return list(zip(jobs, scene.capture(jobs), strict=True))


@pytest.mark.parametrize("persona", ["nurse", "physician"])
def test_log_probabilities_of_given_tokens_equal_a_plain_forward(scene: SiteScene, persona: str) -> None:
    for job, record in captured(scene, persona):
        assert job.given is not None
        assert record.gen_tokens == job.given.token_ids
        logp, _ = scene.forward((*job.prompt.token_ids, *record.gen_tokens))
        n = len(job.prompt.token_ids)
        expected = [logp[n - 1 + i, token] for i, token in enumerate(record.gen_tokens)]
        np.testing.assert_allclose(record.given_logp, expected, atol=1e-4)
        assert record.extra["given_logp"] == pytest.approx(sum(record.given_logp), abs=1e-6)
        assert record.extra["stop"] == "given"
        shifted = [logp[n + i, token] for i, token in enumerate(record.gen_tokens)]
        assert np.abs(np.array(record.given_logp) - shifted).max() > 0.1  # an off-by-one would be seen


def test_given_texts_are_parsed_and_read_at_their_letters(scene: SiteScene) -> None:
    records = [record for _, record in captured(scene, "nurse")]
    assert [record.gen_text for record in records] == list(TEXTS)
    assert [(record.status, record.letter) for record in records] == [("parsed", "C"), ("parsed", "A"), ("parsed", "B")]
    assert [record.label for record in records] == ["emergency", "home", "clinic"]
    for record in records:
        n = len(record.prompt_tokens)
        at = record.positions["answer"]
        written = record.gen_tokens[at + 1 - n]
        assert scene.tokenizer.decode([written]).strip(" .") == record.letter
        logp, states = scene.forward((*record.prompt_tokens, *record.gen_tokens))
        assert record.labels["answer"].variant_logp
        k = ("home", "clinic", "emergency").index(str(record.label))
        ids, values = record.labels["answer"].variant_ids[k], record.labels["answer"].variant_logp[k]
        assert values[ids.index(written)] == pytest.approx(logp[at, written], abs=1e-4)
        scale = np.abs(states[:-1, at]).max()
        assert np.abs(record.resid["answer"][:-1] - states[:-1, at]).max() <= 2e-5 * scale
        mean = states[:-1, n:].mean(1)
        assert np.abs(record.resid["response_mean"][:-1] - mean).max() <= 2e-5 * scale


def test_a_rows_own_answer_given_back_to_it_is_the_same_row(scene: SiteScene) -> None:
    own = scene.capture(scene.jobs())
    assert all(record.gen_tokens for record in own)
    texts = [GivenText(r.cell.case, "own", "x", token_ids=r.gen_tokens, cut=r.extra["stop"] != "end") for r in own]
    again = [
        replace(job, given=GivenAnswer(text.token_ids or (), text.cut))
        for job, text in zip(scene.jobs(), texts, strict=True)
    ]
    for first, second in zip(own, scene.capture(again), strict=True):
        assert second.gen_tokens == first.gen_tokens
        assert (second.status, second.label, second.span) == (first.status, first.label, first.span)
        assert second.positions == first.positions
        assert set(second.labels) == set(first.labels)
        for site, read in first.labels.items():
            np.testing.assert_allclose(second.labels[site].logp, read.logp, atol=1e-4)
        for position, resid in first.resid.items():
            assert np.abs(second.resid[position] - resid).max() <= 2e-5 * np.abs(resid).max(), position
        assert len(second.given_logp) == len(second.gen_tokens)
        assert first.given_logp == ()


def test_a_cut_text_is_truncated_and_a_text_of_another_rotation_is_not_given(scene: SiteScene) -> None:
    (cut,) = scene.capture([scene.job("0", given="cut")])
    assert (cut.status, cut.extra["stop"], cut.label) == ("truncated", "given_cut", None)
    (turned,) = scene.capture([scene.job("0", given="turned", rotation=1)])
    assert (turned.letter, turned.label) == ("A", "emergency")  # rotated, option i has letter i + 1
    (tokens,) = scene.capture([scene.job("0", given="tokens")])
    assert tokens.gen_tokens == (40, 41, 42)


def test_an_answer_to_a_template_that_opens_reasoning_states_nothing_before_its_close(
    scene: SiteScene, tmp_path_factory: pytest.TempPathFactory
) -> None:
    template = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    assert template != CHATML
    texts = {"inside": "I think C. Final answer: C", "behind": "I think C.</think>\n\nFinal answer: A"}
    given = [GivenText("0", source, text) for source, text in texts.items()]
    opened = SiteScene(tmp_path_factory.mktemp("opened"), given=given, template=template)
    jobs = [opened.job("0", given=source) for source in texts]
    inside, behind = opened.capture(jobs)
    assert (inside.status, inside.extra["rule"]) == ("unparsable", "reasoning is not closed")
    assert inside.extra["absent_sites"] == {"after_reasoning": "reasoning_not_closed"}
    assert inside.extra["reasoning_open"]
    assert (behind.status, behind.letter) == ("parsed", "A")
    assert jobs[1].reopener is not None
    place = jobs[1].reopener.find(behind.gen_tokens)
    assert isinstance(place, Reopening)
    assert opened.tokenizer.decode(behind.gen_tokens[: place.n_kept]) == "I think C.</think>\n\n"
    last = len(behind.prompt_tokens) + place.n_kept + len(place.token_ids) - 1
    assert behind.positions["after_reasoning"] == last
    (without,) = scene.capture([scene.job("0", given="inside")])
    assert (without.status, without.letter) == ("parsed", "C")
    assert "reasoning_open" not in without.extra


def test_a_given_text_that_would_end_the_turn_is_refused(scene: SiteScene) -> None:
    with pytest.raises(RowRefused, match=r"SpecialTokens: the text given by 'special' holds '<\|im_end\|>'"):
        scene.job("0", given="special")


def test_an_edited_given_text_is_another_prompt_and_the_same_row(scene: SiteScene) -> None:
    def row(text: str) -> PlannedRow:
        planner = scene.planner([GivenText("0", "x", text)])
        cell = Cell("nurse", "0", Condition(given="x"))
        return planner.job(cell, 0, planned=lambda persona, case: None, keep_text=False).row

    before, after = row("The answer is C."), row("The answer is B.")
    assert before.cell.row_id == after.cell.row_id
    assert before.prompt_sha != after.prompt_sha
    own = scene.job("0")
    assert own.row.prompt_sha == own.prompt.prompt_sha
    assert own.row.cell.row_id == Cell("nurse", "0", Condition()).row_id != before.cell.row_id
    assert before.cell.condition.changed == {"given": "x"}


def test_prompt_and_given_text_must_fit_the_context(scene: SiteScene) -> None:
    shape = scene.backend.facts.shape
    job = scene.job("0", given="texts")
    assert job.given is not None
    n = job.n_tokens

    def planned(context: int, cell: Cell) -> int:
        made = plan_jobs(
            scene.planned,
            [cell],
            rows_per_shard=1,
            planned=lambda persona, case: None,
            keep_text=False,
            shape=replace(shape, context=context),
        )
        return len(made.jobs)

    assert [planned(context, job.row.cell) for context in (n - 1, n)] == [0, 1]
    own = scene.job("0")
    assert [planned(context, own.row.cell) for context in (own.n_tokens, own.n_tokens + 1)] == [0, 1]
