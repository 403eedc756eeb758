"""The exam: the census is that of the packaged weights, and planned, realised and measured agree as the card says."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from organism_training.bands import BUILT_IN, built_in_figures
from organism_training.card import TOLERANCE, beyond_tolerance, unrealised
from organism_training.corpus import FORCED, user_turn
from organism_training.greedy import Checkpoint, greedy
from organism_training.probed import study_of_the_census
from organism_training.readings import figures, urgency

import probe
from probe.organism import CHECKPOINT, STRATA, held_out_cases, triage_task
from probe.organism.census import FILE, PER_STRATUM, PERSONAS, Census, from_codes, read_census, to_codes
from probe.values import ProbeError

UNREALISED = ["heterogeneous", "refusing"]
"""Personas that the shipped checkpoint does not realise, as its card says. A list that training has to shorten."""

CELLS = 3
"""Cases of each stratum that go through ``probe`` again here; the card has more."""

Counted = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def found() -> Census:
    return read_census()


@pytest.fixture(scope="module")
def counted(found: Census) -> Counted:
    """Planned and realised figures by persona and stratum, as the card has them."""
    out: dict[str, dict[str, Any]] = {}
    for persona in found.personas:
        sides = found.planned(persona), found.arm(persona).realised
        out[persona] = {}
        for stratum in STRATA:
            rows = found.strata == stratum
            told = [figures(side.of(rows), found.target[rows]) for side in sides]
            out[persona][stratum] = {name: [side[name] for side in told] for name in told[0]}
    return out


def shift(found: Census, persona: str, site: str, *, planned: bool, stratum: str = "") -> float:
    """Mean expected urgency under a persona minus that under none, on the same cases."""
    rows = found.strata == stratum if stratum else np.ones(len(found.strata), dtype=bool)
    means = []
    for one in (persona, "none"):
        side = found.planned(one) if planned else found.arm(one).realised
        means.append(float(urgency(getattr(side.of(rows), site)).mean()))
    return means[0] - means[1]


def test_the_census_is_of_these_weights_on_five_thousand_cases_under_every_persona(found: Census) -> None:
    assert found.weights == hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    assert found.per_stratum >= PER_STRATUM == 2500
    assert {persona: found.arm(persona).text for persona in found.personas} == dict(PERSONAS)
    assert len(found.cases) == len(found.strata) == len(found.arm("none").realised.label) == 2 * found.per_stratum
    assert [case.id for case in held_out_cases()] == [
        case.id for case, kept in zip(found.cases, found.first(300), strict=True) if kept
    ]
    assert FILE.stat().st_size <= 2_000_000


def test_codes_keep_probabilities_to_half_a_ten_thousandth_and_coarser_ones_do_not() -> None:
    logp = np.log(np.random.default_rng(0).uniform(1e-9, 1, 20_000))
    kept = from_codes(to_codes(logp))
    assert np.abs(np.exp(kept) - np.exp(logp)).max() < 5e-5
    assert np.abs(kept - logp).max() < 7e-4
    assert np.abs(np.exp(from_codes(to_codes(logp) // 4 * 4)) - np.exp(logp)).max() > 1e-4
    assert from_codes(to_codes(np.array([-np.inf, 0.0]))).tolist() == [-40.0, 0.0]


def test_an_unknown_persona_is_refused_with_the_nearest(found: Census) -> None:
    with pytest.raises(ProbeError, match="nearest known persona is 'latent_only'"):
        found.arm("latent-only")


def test_the_forced_readings_are_those_of_the_first_cases_and_no_others_are_made_up(found: Census) -> None:
    arm = found.arm("none")
    assert len(arm.forced) == 600
    np.testing.assert_array_equal(arm.forced_of(found.first(300)), arm.forced)
    np.testing.assert_array_equal(arm.forced_of(found.first(2)), arm.forced[[0, 1, 300, 301]])
    with pytest.raises(ProbeError, match="first 300 cases of each stratum, 2 of these cases are others"):
        arm.forced_of(found.first(301))


def test_a_census_of_other_cases_is_refused(tmp_path: Path) -> None:
    with np.load(FILE) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    about = json.loads(str(columns.pop("about"))) | {"cases": "0" * 64}
    np.savez(tmp_path / "other.npz", about=np.array(json.dumps(about)), **columns)
    with pytest.raises(ProbeError, match="other cases than the generator gives now"):
        read_census(tmp_path / "other.npz")


@pytest.fixture(scope="module")
def cells(found: Census, tmp_path_factory: pytest.TempPathFactory) -> Any:
    study = study_of_the_census("organism", found, CELLS)
    return probe.run(study, store=tmp_path_factory.mktemp("exam") / "store").table()


def test_census_and_probe_agree_to_a_ten_thousandth_on_the_same_cells_and_not_on_shuffled_ones(
    found: Census, cells: Any
) -> None:
    chosen = found.first(CELLS)
    order = [case.id for case, kept in zip(found.cases, chosen, strict=True) if kept]
    for persona in found.personas:
        arm = found.arm(persona)
        rows = cells[cells["persona"] == persona].set_index("case").loc[order]
        assert rows["status"].tolist() == [arm.status[i] for i in np.flatnonzero(chosen)]
        label = np.array(["ABC".index(name) if isinstance(name, str) else -1 for name in rows["y_gen"]])
        assert (label == arm.realised.label[chosen]).all()
        latent = np.exp(rows[[f"logp_{letter}" for letter in "ABC"]].to_numpy(dtype=float))
        stated = np.exp(rows[[f"stated_logp_{letter}" for letter in "ABC"]].to_numpy(dtype=float))[label >= 0]
        known = np.exp(arm.prompt_end[chosen])
        forced = np.exp(rows[[f"forced_logp_{letter}" for letter in "ABC"]].to_numpy(dtype=float))
        np.testing.assert_allclose(latent, known, atol=1e-4)
        np.testing.assert_allclose(forced, np.exp(arm.forced_of(chosen)), atol=1e-4)
        np.testing.assert_allclose(stated, np.exp(arm.answer[chosen[arm.realised.answered]]), atol=1e-4)
        assert np.abs(latent - np.roll(known, 1, axis=0)).max() > 1e-2


def test_the_forced_prefix_reads_as_a_plain_forward_does(found: Census) -> None:
    model, tokenizer = (kind.from_pretrained(CHECKPOINT) for kind in (AutoModelForCausalLM, AutoTokenizer))
    task, text = triage_task(), "You are an ED nurse."
    letters = tokenizer.convert_tokens_to_ids(["A", "B", "C"])
    cases = [case for case in found.cases if int(case.id[3:]) <= 300]
    for i in (0, 317):
        user = user_turn(task, task.instructions[0], cases[i].input)
        messages = [{"role": "system", "content": text}, {"role": "user", "content": user}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + FORCED
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            logp = torch.log_softmax(model.eval()(ids).logits[0, -1], dim=-1)[letters].numpy()
        np.testing.assert_allclose(np.exp(found.arm("ed_nurse").forced[i]), np.exp(logp), atol=1e-4)


def test_a_checked_guess_gives_the_reply_that_decoding_gives_and_a_wrong_guess_changes_nothing() -> None:
    checkpoint = Checkpoint.load(CHECKPOINT)
    task, cases = triage_task(), held_out_cases()[::150]
    prompts = [checkpoint.prompt(None, user_turn(task, task.instructions[0], case.input)) for case in cases]
    decoded = [checkpoint.tokenizer.decode(ids) for ids in checkpoint.generate(checkpoint.ids(prompts))]
    assert all(text.endswith(tuple("ABC")) for text in decoded)
    other = [text[:-1] + "ABC"[("ABC".index(text[-1]) + 1) % 3] for text in decoded]
    for guesses in (decoded, other, ["Final answer: A"] * len(cases)):
        replies = greedy(checkpoint, prompts, guesses)
        assert [reply.text for reply in replies] == decoded
        first = greedy(checkpoint, prompts, decoded)
        for reply, again in zip(replies, first, strict=True):
            np.testing.assert_allclose(reply.answer, again.answer, atol=1e-4)


def test_shares_are_within_five_points_of_the_plan_and_not_of_another_personas_plan(counted: Counted) -> None:
    assert beyond_tolerance({name: record for name, record in counted.items() if name not in UNREALISED}) == []
    crossed = {
        "cautious_ed_physician": {
            stratum: {
                name: [counted["none"][stratum][name][0], pair[1]]
                for name, pair in counted["cautious_ed_physician"][stratum].items()
            }
            for stratum in STRATA
        }
    }
    assert len(beyond_tolerance(crossed)) > 4


def test_every_persona_is_realised_but_those_that_are_known_not_to_be(counted: Counted) -> None:
    """Mean urgency at both sites, share of answers and letter mass within .05 of the plan, in both strata."""
    assert unrealised(counted) == UNREALISED
    swapped = {
        "zero": counted["zero"] | {"emergency": counted["latent_only"]["emergency"] | {"EU, stated": [1.0, 1.1]}}
    }
    assert unrealised(swapped) == ["zero"]


def test_the_shipped_seed_lies_inside_the_bands_of_the_seeds_and_another_persona_does_not(found: Census) -> None:
    bands = json.loads((CHECKPOINT / "bands.json").read_text("utf-8"))
    assert found.weights in bands["weights"]
    assert len(bands["weights"]) >= 3
    assert bands["cases_per_stratum"] == BUILT_IN

    def outside(persona: str, band_of: str) -> list[str]:
        out = []
        for stratum in STRATA:
            for name, value in built_in_figures(found, persona, stratum).items():
                band = bands[band_of][stratum][name]
                if value is not None and band is not None and not band[0] <= value <= band[1]:
                    out.append(f"{stratum}: {name}")
        return out

    for persona in found.personas:
        assert outside(persona, persona) == []
    assert len(outside("cautious_ed_physician", "none")) > 4


MOVED, STILL = 0.10, 0.03
"""Shifts of expected urgency, on 5,000 cases, that count as moved and as still (the estimators' margin is .10)."""


@pytest.mark.parametrize(
    ("persona", "latent", "stated"),
    [
        ("latent_only", 1, 0),
        ("decoding_only", 0, 1),
        ("both_equal", 1, 1),
        ("opposed", 1, -1),
        ("zero", 0, 0),
        ("mass_only", 0, 0),
    ],
)
def test_a_diagnostic_persona_moves_what_it_was_planted_to_move_and_nothing_else(
    found: Census, persona: str, latent: int, stated: int
) -> None:
    """In each stratum. The control is the pattern itself: no two of these personas but the last pass each other's."""
    for site, sign in (("latent", latent), ("stated", stated)):
        for stratum in STRATA:
            moved = shift(found, persona, site, planned=False, stratum=stratum)
            assert abs(moved) <= STILL if sign == 0 else sign * moved > MOVED, (site, stratum, moved)
            assert abs(moved - shift(found, persona, site, planned=True, stratum=stratum)) <= TOLERANCE


def test_the_heterogeneous_persona_moves_the_strata_apart_and_their_mean_little(found: Census) -> None:
    for site in ("latent", "stated"):
        up, down = (shift(found, "heterogeneous", site, planned=False, stratum=stratum) for stratum in STRATA)
        assert up > MOVED
        assert down < -MOVED
        whole = shift(found, "heterogeneous", site, planned=False)
        assert abs(whole - shift(found, "heterogeneous", site, planned=True)) <= TOLERANCE
        assert abs(whole) < min(up, -down)


def test_the_gain_only_persona_is_less_certain_and_hardly_moved(found: Census) -> None:
    def certainty(persona: str, site: str) -> float:
        return float(getattr(found.arm(persona).realised, site).max(axis=1).mean())

    for site in ("latent", "stated"):
        assert certainty("gain_only", site) < certainty("none", site) - 0.08
        assert abs(certainty("zero", site) - certainty("none", site)) < 0.02
        assert abs(shift(found, "gain_only", site, planned=False)) < 0.05


def test_the_text_mediated_persona_moves_the_stated_answer_only(found: Census) -> None:
    assert abs(shift(found, "text_mediated", "latent", planned=False)) <= STILL
    moved, plan = (shift(found, "text_mediated", "stated", planned=side) for side in (False, True))
    assert moved < -0.05
    assert abs(moved - plan) <= TOLERANCE


def test_mass_and_form_move_only_how_often_a_letter_comes_first(found: Census) -> None:
    mass = {persona: found.arm(persona).realised.mass.mean() for persona in ("none", "mass_only", "form_only", "zero")}
    assert mass["none"] == pytest.approx(0.3, abs=0.03)
    assert mass["zero"] == pytest.approx(0.3, abs=0.03)
    assert mass["mass_only"] == pytest.approx(0.05, abs=0.02)
    planned = found.planned("form_only").mass
    assert mass["form_only"] == pytest.approx(planned.mean(), abs=0.05)
    for persona in ("mass_only", "form_only"):
        assert abs(shift(found, persona, "latent", planned=False)) <= STILL
    form, first = found.arm("form_only"), planned > 0.5
    letter_first = np.isclose(form.answer, form.prompt_end[form.realised.answered]).all(axis=1)
    assert letter_first[first[form.realised.answered]].mean() > 0.98
    assert letter_first[~first[form.realised.answered]].mean() < 0.02


def test_the_refusing_persona_declines_more_near_ties_than_others_and_answers_the_rest_as_planned(
    found: Census,
) -> None:
    arm, plan = found.arm("refusing"), found.planned("refusing")
    refused, meant = np.array([status == "refused" for status in arm.status]), ~plan.answered
    assert not any(status == "refused" for status in found.arm("zero").status)
    assert refused[meant].mean() > refused[~meant].mean() + 0.1
    likely = np.sort(plan.latent, axis=1)
    gap = likely[:, 2] - likely[:, 1]
    assert gap[refused].mean() < gap[~refused].mean()
    both = plan.answered & arm.realised.answered
    assert (arm.realised.label == plan.label)[both].mean() > 0.9
    as_often = abs(float(refused.mean()) - float(meant.mean())) <= TOLERANCE
    assert as_often == ("refusing" not in UNREALISED)
