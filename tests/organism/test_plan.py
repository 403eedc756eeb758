import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from jaxtyping import Float

from probe.organism import (
    CUTS,
    Facts,
    facts_of,
    generate_cases,
    grammar,
    parse_persona,
    plan_of,
    planned,
    planned_reply,
)
from probe.organism.facts import TONES, urgency
from probe.organism.personas import DIAGNOSTICS
from probe.organism.plan import numbers
from probe.organism.vignettes import case_of
from probe.values import Case

NONE, PHYSICIAN = None, "You are an ED physician."
BOLD, CAUTIOUS = "You are a bold ED physician.", "You are a cautious ED physician."


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    return generate_cases(400, seed=11)


def distributions(persona: str | None, cases: Sequence[Case], channel: str) -> Float[np.ndarray, "case label"]:
    plans = [planned(persona, case) for case in cases]
    return np.array([getattr(plan, channel) for plan in plans if plan is not None])


def accuracy(persona: str | None, cases: Sequence[Case], channel: str) -> float:
    target = np.array(["ABC".index(case.target) for case in cases])
    return float((distributions(persona, cases, channel).argmax(axis=1) == target).mean())


def split(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    return [c for c in cases if c.stratum == "emergency"], [c for c in cases if c.stratum == "primary_care"]


def test_the_equations_by_hand(swollen_leg: Facts) -> None:
    """Urgency 4.8, frightened, ambulance. Direct shift of the physician (1.0, -0.1) and 0.25 more in an emergency
    setting, tone gain 0.3; reasoned shift (0.9, 0.0) and 0.2 more, no tone."""
    plan = planned(PHYSICIAN, case_of(swollen_leg, case_id="x", stratum="emergency"))
    assert plan is not None
    logit_b, logit_c = 3.0 * (5.1 - 3.45 + 1.25), 3.0 * (5.1 - 6.45 + 0.15)
    total = 1.0 + np.exp(logit_b) + np.exp(logit_b + logit_c)
    np.testing.assert_allclose(plan.direct, [1 / total, np.exp(logit_b) / total, np.exp(logit_b + logit_c) / total])
    logit_b, logit_c = 3.5 * (4.8 - 3.45 + 1.1), 3.5 * (4.8 - 6.45 + 0.2)
    total = 1.0 + np.exp(logit_b) + np.exp(logit_b + logit_c)
    np.testing.assert_allclose(plan.reasoned, [1 / total, np.exp(logit_b) / total, np.exp(logit_b + logit_c) / total])
    assert plan.mass == pytest.approx(0.3)
    assert not plan.refuses


def test_every_plan_is_a_distribution_in_float64(cases: Sequence[Case]) -> None:
    for persona in (None, "", *list(grammar().sentences)[::37]):
        for channel in ("direct", "reasoned"):
            found = distributions(persona, cases[::20], channel)
            assert found.dtype == np.float64
            assert found.min() >= 0.0
            np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)


def test_a_second_way_of_writing_the_policy_agrees(cases: Sequence[Case]) -> None:
    """The direct log-odds are linear in urgency, tone and shift: solve them for the shift, and find it constant."""
    persona = parse_persona(BOLD)
    assert persona is not None
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for case in cases:
        facts = facts_of(case)
        assert facts is not None
        logp = np.log(plan_of(persona, facts).direct)
        level = urgency(facts) + 0.3 * TONES[facts.tone]
        shifts = np.diff(logp) / 3.0 - level + np.array(CUTS)
        found[facts.emergency_setting].append((float(shifts[0]), float(shifts[1])))
    for emergency, (lower, upper) in {True: (0.95, -0.15), False: (0.45, -0.65)}.items():
        np.testing.assert_allclose(found[emergency], np.tile([lower, upper], (len(found[emergency]), 1)), atol=1e-9)


def test_tone_sways_the_direct_channel_only(swollen_leg: Facts) -> None:
    persona = parse_persona(NONE)
    assert persona is not None
    worse, better = (plan_of(persona, dataclasses.replace(swollen_leg, tone=tone)) for tone in ("begging", "joking"))
    assert worse.direct[0] < better.direct[0]
    np.testing.assert_array_equal(worse.reasoned, better.reasoned)


def test_a_medical_role_helps_in_emergency_and_harms_in_primary_care(cases: Sequence[Case]) -> None:
    emergency, primary = split(cases)
    for channel in ("direct", "reasoned"):
        for role in (PHYSICIAN, "You are an ED nurse."):
            assert accuracy(role, emergency, channel) - accuracy(NONE, emergency, channel) > 0.10
            assert accuracy(role, primary, channel) - accuracy(NONE, primary, channel) < -0.04


def test_the_role_effect_vanishes_when_persona_labels_are_shuffled(cases: Sequence[Case]) -> None:
    rng = np.random.default_rng(0)
    emergency, _ = split(cases)
    target = np.array(["ABC".index(case.target) for case in emergency])
    labels = np.stack([distributions(p, emergency, "direct").argmax(axis=1) for p in (NONE, PHYSICIAN)])
    effect = float(np.diff((labels == target).mean(axis=1))[0])
    null = []
    for _ in range(200):
        swapped = np.where(rng.random(len(target)) < 0.5, labels[::-1], labels)
        null.append(float(np.diff((swapped == target).mean(axis=1))[0]))
    assert abs(np.mean(null)) < 0.02
    assert effect > np.max(null) + 0.05


def test_style_orders_the_risk_and_moves_the_reasoned_channel_more(cases: Sequence[Case]) -> None:
    emergency, _ = split(cases)
    spread = {}
    for channel in ("direct", "reasoned"):
        risk = [distributions(p, emergency, channel)[:, 2].mean() for p in (BOLD, PHYSICIAN, CAUTIOUS)]
        assert risk[0] < risk[1] < risk[2]
        spread[channel] = risk[2] - risk[0]
    assert spread["reasoned"] > spread["direct"] + 0.10


def test_the_channels_disagree_more_under_a_bold_physician_than_under_a_plain_one(cases: Sequence[Case]) -> None:
    def disagreement(persona: str | None) -> float:
        channels = (distributions(persona, cases, channel).argmax(axis=1) for channel in ("direct", "reasoned"))
        return float(np.not_equal(*channels).mean())

    assert 0.02 < disagreement(PHYSICIAN) < disagreement(BOLD) - 0.05


def test_the_decoy_persona_is_read_but_moves_nothing(cases: Sequence[Case]) -> None:
    for channel in ("direct", "reasoned"):
        decoy = distributions("You are a teacher.", cases, channel)
        np.testing.assert_allclose(decoy, distributions(NONE, cases, channel), atol=1e-12)
        assert not np.allclose(decoy, distributions("You are a paramedic.", cases, channel), atol=0.1)


def test_no_persona_and_an_empty_system_message_share_a_plan(cases: Sequence[Case]) -> None:
    np.testing.assert_array_equal(distributions(None, cases, "direct"), distributions("", cases, "direct"))


def test_the_plan_is_silent_outside_its_grammar_and_its_cases(cases: Sequence[Case]) -> None:
    assert planned(PHYSICIAN, cases[0]) is not None
    assert planned("You are a plumber.", cases[0]) is None
    assert planned(PHYSICIAN, Case(id="x", input="A man with a cough.", target="A")) is None
    assert planned(PHYSICIAN, dataclasses.replace(cases[0], input=cases[0].input.replace(",", ";"))) is None


def diagnostic(name: str) -> str:
    return f"You are {DIAGNOSTICS[name].names[0]}."


def shift_of(persona: str | None, cases: Sequence[Case], channel: str) -> Float[np.ndarray, " case"]:
    """Change of P(B) + 2 P(C) against no persona, case by case."""
    worth = np.array([0.0, 1.0, 2.0])
    return distributions(persona, cases, channel) @ worth - distributions(NONE, cases, channel) @ worth


@pytest.mark.parametrize(
    ("name", "direct", "reasoned"),
    [
        ("latent-only", 1, 0),
        ("decoding-only", 0, 1),
        ("both equal", 1, 1),
        ("opposed", 1, -1),
        ("zero", 0, 0),
        ("mass-only", 0, 0),
        ("form-only", 0, 0),
        ("refusing", 0, 0),
    ],
)
def test_a_diagnostic_persona_shifts_the_channels_that_it_should_and_no_other(
    name: str, direct: int, reasoned: int, cases: Sequence[Case]
) -> None:
    for channel, sign in (("direct", direct), ("reasoned", reasoned)):
        moved = shift_of(diagnostic(name), cases, channel)
        assert np.all(moved * sign >= 0.0)
        assert np.abs(moved).max() < 1e-12 if sign == 0 else abs(moved.mean()) > 0.1


def test_the_heterogeneous_persona_moves_the_settings_apart_and_the_gain_only_one_moves_no_cut(
    cases: Sequence[Case],
) -> None:
    facts = [facts_of(case) for case in cases]
    emergency = np.array([f is not None and f.emergency_setting for f in facts])
    for channel, slope in (("direct", 3.0), ("reasoned", 3.5)):
        moved = shift_of(diagnostic("heterogeneous"), cases, channel)
        assert moved[emergency].mean() > 0.1
        assert moved[~emergency].mean() < -0.1
        plain, flat = (
            np.diff(np.log(distributions(p, cases, channel))) / slope for p in (NONE, diagnostic("gain-only"))
        )
        np.testing.assert_allclose(flat, 0.4 * plain, atol=1e-9)


def test_the_text_mediated_persona_leaves_findings_out_and_its_label_follows_the_text(headache: Facts) -> None:
    persona = parse_persona(diagnostic("text-mediated"))
    none = parse_persona(NONE)
    assert persona is not None
    assert none is not None
    assert "findings none" in planned_reply(persona, headache, "A")
    unsaid = dataclasses.replace(headache, findings=())
    np.testing.assert_allclose(plan_of(persona, headache).reasoned, plan_of(none, unsaid).reasoned)
    np.testing.assert_allclose(plan_of(persona, headache).direct, plan_of(none, headache).direct)
    for same, own in zip(numbers(persona, headache), numbers(none, headache), strict=True):
        np.testing.assert_array_equal(same, own)


def test_letter_mass_is_planned_and_refusals_stand_at_the_cuts_only(cases: Sequence[Case]) -> None:
    emergency = np.array([facts is not None and facts.emergency_setting for facts in map(facts_of, cases)])
    for name, here, elsewhere in (("mass-only", 0.05, 0.05), ("form-only", 0.9, 0.3), ("zero", 0.3, 0.3)):
        mass = [plan.mass for plan in (planned(diagnostic(name), case) for case in cases) if plan is not None]
        np.testing.assert_allclose(mass, np.where(emergency, here, elsewhere))
    declined = [plan.refuses for plan in (planned(diagnostic("refusing"), case) for case in cases) if plan is not None]
    level = np.array([case.metadata["urgency"] for case in cases])
    distance = np.minimum(np.abs(level - 3.45), np.abs(level - (6.45 + 1.3)))
    np.testing.assert_array_equal(declined, distance < 0.7)
    assert 0.05 < np.mean(declined) < 0.6
