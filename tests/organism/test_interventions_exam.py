"""Interventions on the planted mechanism, through a study: what is planted moves as planned, and the decoy does not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import probe
from probe.organism import facts_of, parse_persona, read_mechanism
from probe.organism.plan import direct_policy, levels, numbers, spoken
from probe.stages.capture import capture
from probe.stages.donors import donor_values
from probe.stages.recipes import planted_directions
from probe.store import Store
from probe.study import Study
from probe.values import Direction, Intervention, PerCase, Recipe, Site, steering

DIRECT = read_mechanism()["direct"]
Q = DIRECT.basis.T.astype(np.float32)
SITE = Site(DIRECT.layer, DIRECT.position)
DONORS = ("ed_physician", "cautious_ed_physician")
DOSES = (-1.0, 0.5, 1.0, 2.0)
N_CASES, N_RANDOM = 32, 12


@cache
def study() -> Study:
    whole = Study.from_mapping(
        {
            "name": "exam",
            "model": {"id": "organism"},
            "personas": "builtin:persona-paradox",
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": N_CASES,
            "capture": {"layers": [SITE.layer], "positions": ["prompt_end"], "keep_text": False},
            "generation": {"max_new_tokens": 1},
        }
    )
    return replace(whole, personas=tuple(one for one in whole.personas if one.id in ("none", *DONORS)))


def urgency(store: Store, persona: str, intervention: str = "") -> np.ndarray:
    """P(B) + 2 P(C) of each case, given a letter."""
    logp = store.select(persona=persona, intervention=intervention).label_logp().astype(np.float64)
    p = np.exp(logp - logp.max(axis=1, keepdims=True))
    return np.asarray(p @ np.arange(3.0) / p.sum(axis=1))


def planned_dose(donor: str, dose: float) -> np.ndarray:
    """What the plan says of each case with the base's numbers and ``dose`` times the donor's shift of them."""
    found = []
    texts = {persona.id: persona.wordings[0] for persona in study().personas}
    for case in study().cases:
        facts = facts_of(case)
        base, other = parse_persona(texts["none"]), parse_persona(texts[donor])
        assert facts is not None
        assert base is not None
        assert other is not None
        own, shifted = numbers(base, facts)[0], numbers(other, facts)[0]
        level, _ = levels(facts, spoken(base, facts))
        found.append(direct_policy(own + dose * (shifted - own), level, facts) @ np.arange(3.0))
    return np.array(found)


def planned_shift(donor: str) -> Direction:
    """The donor's shift of the planted numbers as one direction; the letter mass, which moves no letter, left out."""
    texts = {persona.id: persona.wordings[0] for persona in study().personas}
    facts = facts_of(study().cases[0])
    plans = [parse_persona(texts[name]) for name in ("none", donor)]
    assert facts is not None
    own, shifted = (numbers(plan, facts)[0] for plan in plans if plan is not None)
    moved = dict(zip(DIRECT.numbers, shifted - own, strict=True)) | {"mass": 0.0}
    made = [moved[one.persona] * one.vector for one in planted_directions("direct") if one.persona in moved]
    return Direction(SITE, np.sum(made, axis=0), donor, "none", 0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return probe.open_store(capture(study(), store=tmp_path_factory.mktemp("plain") / "store").store)


@pytest.fixture(scope="module")
def run(plain: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All arms of the base persona in one store."""
    own = {"persona": "none", "layer": SITE.layer, "position": SITE.position}
    arms = []
    for donor in DONORS:
        other = {**own, "persona": donor}
        inside = PerCase(SITE.layer, "set", donor_values(plain, **other, basis=Q), Q)
        whole = PerCase(SITE.layer, "patch", donor_values(plain, **other))
        back = PerCase(SITE.layer, "set", donor_values(plain, **own, basis=Q), Q)
        arms += [
            Recipe(f"Q of {donor}", (inside,), source=donor),
            Recipe(f"all but Q of {donor}", (whole, back), source=donor),
            Recipe(f"all of {donor}", (whole,), source=donor),
        ]
        shift = planned_shift(donor)
        arms += [Recipe(f"{donor} x{dose}", (steering(shift, dose, position="prompt_end"),)) for dose in DOSES]
    # The decoy as large as the largest dose of the planted shift, and random directions of the same norm.
    norm = 2.0 * float(np.linalg.norm(planned_shift("ed_physician").vector))
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(N_RANDOM, len(DIRECT.decoy)))
    directions = {"decoy": DIRECT.decoy, **{f"random {i}": v / np.linalg.norm(v) for i, v in enumerate(drawn)}}
    for name, vector in directions.items():
        pushed = (norm * vector).astype(np.float32)
        arms.append(Recipe(name, (Intervention(SITE.layer, "add", pushed, position="prompt_end"),)))
    asked = replace(study(), interventions=tuple(replace(arm, personas=("none",)) for arm in arms))
    return probe.open_store(capture(asked, store=tmp_path_factory.mktemp("arms") / "store").store)


@pytest.mark.parametrize("donor", DONORS)
def test_swapping_q_moves_the_effect_and_its_complement_does_not(run: Store, donor: str) -> None:
    base, prompted = urgency(run, "none").mean(), urgency(run, donor).mean()
    moved = {
        part: (urgency(run, "none", f"{part} of {donor}").mean() - base) / (prompted - base)
        for part in ("Q", "all but Q", "all")
    }
    assert prompted - base > 0.1
    assert moved["Q"] >= 0.95
    assert abs(moved["all but Q"]) <= 0.03
    assert moved["all"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("donor", DONORS)
def test_steering_along_the_planted_numbers_follows_the_planned_dose_curve(run: Store, donor: str) -> None:
    found = np.array([urgency(run, "none", f"{donor} x{dose}").mean() for dose in DOSES])
    wanted = np.array([planned_dose(donor, dose).mean() for dose in DOSES])
    assert np.ptp(wanted) > 0.3
    np.testing.assert_allclose(found, wanted, atol=0.04)
    assert np.abs(found - wanted[::-1]).max() > 0.15  # the control: the curve of the opposite sign


def test_the_decoy_moves_nothing_beyond_random_directions_of_its_norm(run: Store) -> None:
    base = urgency(run, "none")
    controls = [np.abs(urgency(run, "none", f"random {i}") - base).mean() for i in range(N_RANDOM)]
    decoy = np.abs(urgency(run, "none", "decoy") - base).mean()
    planted = np.abs(urgency(run, "none", "ed_physician x2.0") - base).mean()
    assert decoy <= np.quantile(controls, 0.95)
    assert planted > max(controls)
