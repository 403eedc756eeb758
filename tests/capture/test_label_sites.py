"""Forced sites, sites after reasoning and labels of several tokens equal plain forwards over the whole sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.capture.forks import ForkRead
from probe.capture.site_forks import forked_sites, forks_of
from probe.prompts import Reopening
from probe.values import AbsentSite, CellRecord, GivenText, LabelRead
from tests.capture.site_scene import SiteScene

THOUGHTS = "<think>\nA or B? The fever is high.\n</think>\n\n"
ANSWERS = ("Final answer: B", "A", "")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SiteScene:
    reasoned = [GivenText(str(k), "reasoned", THOUGHTS + answer) for k, answer in enumerate(ANSWERS)]
    given = [
        *reasoned,
        GivenText("0", "open", "<think>\nA or B?"),
        GivenText("0", "plain", "The answer is A."),
    ]
    return SiteScene(tmp_path_factory.mktemp("model"), str(request.param), given=given)


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> SiteScene:
    """Labels of two tokens and one of one."""
    given = [GivenText(str(k), "reasoned", THOUGHTS) for k in range(3)]
    folder = tmp_path_factory.mktemp("spelled")
    return SiteScene(folder, letters=("QZ", "QX", "B"), score="continuation", given=given)


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    return float(np.abs(found - expected).max()) <= 2e-5 * float(np.abs(expected).max())


def check_resid(scene: SiteScene, record: CellRecord, site: str, ids: tuple[int, ...]) -> None:
    """The residuals at a site against those of the last token of a plain forward; not those of the token before."""
    _, states = scene.forward(ids)
    got = record.resid[site]
    assert near(got[:-1], states[:-1, -1])  # the last entry of hidden_states stands after the final norm
    assert not near(got[:-1], states[:-1, -2])


def test_a_forced_site_equals_a_plain_forward_over_prompt_and_forced_text(scene: SiteScene) -> None:
    jobs = scene.jobs()
    for job, record in zip(jobs, scene.capture(jobs), strict=True):
        assert job.forced is not None
        ids = (*job.prompt.token_ids, *job.forced.token_ids)
        read = record.labels["forced"]
        np.testing.assert_allclose(read.logp, scene.labels_after(ids, job.forced.labels), atol=1e-4)
        assert read.mass == pytest.approx(float(np.exp(read.logp).sum()), abs=1e-5)
        assert record.positions["forced"] == len(ids) - 1
        check_resid(scene, record, "forced", ids)
        assert record.extra["absent_sites"] == {"after_reasoning": AbsentSite.NO_REASONING}
        assert record.positions["after_reasoning"] == -1
        assert "after_reasoning" not in record.labels


def test_forks_leave_the_rows_own_course_as_it_is(scene: SiteScene) -> None:
    jobs = scene.jobs()
    plain = [replace(job, forced=None, reopener=None) for job in jobs]
    for forked, alone in zip(scene.capture(jobs), scene.capture(plain), strict=True):
        assert forked.gen_tokens == alone.gen_tokens
        assert set(alone.labels) == set(forked.labels) - {"forced"}
        for site, read in alone.labels.items():
            np.testing.assert_allclose(forked.labels[site].logp, read.logp, atol=1e-4)
        for position, resid in alone.resid.items():
            assert near(forked.resid[position], resid)
        assert "absent_sites" not in alone.extra


def test_a_site_after_reasoning_equals_a_plain_forward_over_what_is_kept(scene: SiteScene) -> None:
    jobs = scene.jobs(given="reasoned")
    for job, record in zip(jobs, scene.capture(jobs), strict=True):
        assert job.reopener is not None
        assert job.given is not None
        place = job.reopener.find(record.gen_tokens)
        assert isinstance(place, Reopening)
        assert scene.tokenizer.decode(record.gen_tokens[: place.n_kept]) == THOUGHTS
        ids = (*job.prompt.token_ids, *record.gen_tokens[: place.n_kept], *place.token_ids)
        np.testing.assert_allclose(
            record.labels["after_reasoning"].logp, scene.labels_after(ids, job.reopener.labels), atol=1e-4
        )
        assert record.positions["after_reasoning"] == len(ids) - 1
        check_resid(scene, record, "after_reasoning", ids)
        assert "absent_sites" not in record.extra


def test_why_a_row_has_no_site_after_reasoning_is_recorded(scene: SiteScene) -> None:
    for source, reason in (("open", AbsentSite.NOT_CLOSED), ("plain", AbsentSite.NO_REASONING)):
        (record,) = scene.capture([scene.job("0", given=source)])
        assert record.extra["absent_sites"] == {"after_reasoning": reason}
        assert "forced" in record.labels


def test_a_cache_that_cannot_be_forked_makes_sites_unavailable_and_nothing_else(scene: SiteScene) -> None:
    job = scene.job("0", given="reasoned")
    read = LabelRead(np.zeros(3, np.float32), 1.0, 0.0)
    assert job.given is not None
    tokens = list(job.given.token_ids)
    refused = forked_sites(job, read, tokens, {"forced": "site_unavailable", "after_reasoning": "site_unavailable"})
    assert refused.absent == dict.fromkeys(("forced", "after_reasoning"), "site_unavailable")
    assert set(refused.reads) == {"prompt_end"}
    assert not refused.positions
    missing = forked_sites(job, read, tokens, {})
    assert missing.absent == refused.absent


def test_labels_of_several_tokens_equal_plain_forwards_over_each_of_them(spelled: SiteScene) -> None:
    jobs = spelled.jobs(given="reasoned")
    for job, record in zip(jobs, spelled.capture(jobs), strict=True):
        assert job.forced is not None
        assert job.reopener is not None
        prompt = job.prompt.token_ids
        place = job.reopener.find(record.gen_tokens)
        assert isinstance(place, Reopening)
        after = {
            "prompt_end": (prompt, job.labels),
            "forced": ((*prompt, *job.forced.token_ids), job.forced.labels),
            "after_reasoning": (
                (*prompt, *record.gen_tokens[: place.n_kept], *place.token_ids),
                job.reopener.labels,
            ),
        }
        for site, (ids, labels) in after.items():
            assert labels.ids[:2] == ((), ())
            read = record.labels[site]
            np.testing.assert_allclose(read.logp, spelled.labels_after(ids, labels), atol=1e-4, err_msg=site)
            assert read.mass == pytest.approx(float(np.exp(read.logp.astype(float)).sum()), rel=1e-5)
            assert 0 < read.mass <= 1
            _, states = spelled.forward(ids)
            assert near(record.resid[site][:-1], states[:-1, -1])


def test_a_label_of_one_token_scored_as_a_continuation_equals_its_token_read(scene: SiteScene) -> None:
    jobs = scene.jobs()
    asked = [
        replace(job, labels=replace(job.labels, ids=((), (), ()), spelled=_as_spelled(job.labels.ids))) for job in jobs
    ]
    for by_token, by_fork in zip(scene.capture(jobs), scene.capture(asked), strict=True):
        one, other = by_token.labels["prompt_end"], by_fork.labels["prompt_end"]
        np.testing.assert_allclose(other.logp, one.logp, atol=1e-5)
        assert other.mass == pytest.approx(one.mass, abs=1e-5)
        assert other.entropy == pytest.approx(one.entropy, abs=1e-5)


def _as_spelled(ids: tuple[tuple[int, ...], ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(tuple((token,) for token in variants) for variants in ids)


def test_a_label_of_several_tokens_is_absent_where_one_of_its_forks_is(spelled: SiteScene) -> None:
    job = spelled.job("0")
    forks = {fork.name: ForkRead(np.full(len(fork.token_ids), -1.0, np.float32), {}) for fork in forks_of(job)}
    read = LabelRead(np.array([-np.inf, -np.inf, -1.0], np.float32), 0.4, 0.0)
    whole = forked_sites(replace(job, forced=None, reopener=None), read, [], forks)
    n = len(job.labels.spelled[0])
    expected = np.logaddexp.reduce([-float(len(tokens)) for tokens in job.labels.spelled[0]])
    assert n == 2
    assert whole.reads["prompt_end"].logp[0] == pytest.approx(expected)
    lacking = forks | {"prompt_end/1/0": "site_unavailable"}
    part = forked_sites(replace(job, forced=None, reopener=None), read, [], lacking)
    assert part.absent == {"prompt_end": "site_unavailable"}
    assert not part.reads


def test_only_the_label_sites_that_were_asked_for_are_recorded(scene: SiteScene) -> None:
    capturer = scene.capturer
    scene.capturer = replace(capturer, label_sites=("forced",))
    try:
        records = scene.capture(scene.jobs())
    finally:
        scene.capturer = capturer
    assert [set(record.labels) for record in records] == [{"forced"}] * 3
