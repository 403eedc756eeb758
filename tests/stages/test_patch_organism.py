"""On the organism, whose personas pass through a planted point, patching finds that point and its tokens."""

from __future__ import annotations

import pandas as pd
import pytest

from probe.mechanism.patching.grid import DENOISING, HEAD_OUT, KEYS_VALUES, NOISING, NONSENSE, RESID
from probe.mechanism.patching.groups import ANSWER, CASE, GENERATED, INSTRUCTION, PERSONA, PROMPT_END, TEMPLATE
from probe.organism import read_mechanism
from probe.stages.patch import PatchTables, patch
from probe.stages.patch_request import PatchRequest
from probe.study import Study

pytestmark = pytest.mark.slow

CASES = 24
PLACES = {"latent": ("direct", PROMPT_END), "stated": ("reasoned", ANSWER)}
MOVES = {"latent": ("latent_only", "ed_physician"), "stated": ("decoding_only", "ed_physician")}
STILL = {"latent": ("decoding_only", "zero"), "stated": ("latent_only", "zero")}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> PatchTables:
    whole = Study.from_mapping(
        {
            "name": "organism-patch",
            "model": {"id": "organism"},
            "personas": ["builtin:diagnostics", "builtin:persona-paradox"],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "capture": {"layers": [0]},
        }
    ).limited(CASES)
    mapping = whole.to_mapping()
    kept = {"none", *MOVES["latent"], *MOVES["stated"], "zero"}
    mapping["personas"] = [one for one in mapping["personas"] if one["id"] in kept]
    asked = PatchRequest(streams=(RESID, KEYS_VALUES, HEAD_OUT), points=(0, 2, 3, 4, 6), paths=False)
    return patch(Study.from_mapping(mapping), asked, store=tmp_path_factory.mktemp("organism") / "s")


@pytest.fixture(scope="module")
def fraction(tables: PatchTables) -> pd.Series:
    own = tables.effects
    own = own[(own["outcome"] == "expected_urgency") & (own["stratum"] == "all") & (own["head"] == -1)]
    names = ["persona", "read", "direction", "control", "stream", "layer", "group"]
    return own.set_index(names)["fraction"].sort_index()


@pytest.mark.parametrize("read", ["latent", "stated"])
def test_the_planted_point_of_its_channel_carries_the_effect_and_the_point_below_does_not(
    fraction: pd.Series, read: str
) -> None:
    name, group = PLACES[read]
    planted = read_mechanism()[name]
    assert (planted.layer, planted.position) == (3, group)
    for persona in MOVES[read]:
        for direction in (DENOISING, NOISING):
            at = fraction[persona, read, direction, "", RESID]
            assert at[planted.layer, group] == pytest.approx(1, abs=0.06)
            assert abs(at[planted.layer - 1, group]) < 0.4


@pytest.mark.parametrize("read", ["latent", "stated"])
def test_above_the_planted_point_no_other_token_is_a_cause(fraction: pd.Series, read: str) -> None:
    name, group = PLACES[read]
    layer = read_mechanism()[name].layer
    others = {PERSONA, TEMPLATE, INSTRUCTION, CASE, PROMPT_END, GENERATED} - {group}
    for persona in MOVES[read]:
        at = fraction[persona, read, DENOISING, "", RESID]
        for other in others & {token for _, token in at.index}:
            assert abs(at[layer, other]) < 0.06
        # What stands at the point was fetched in the block below it, from the persona's or the turn's tokens.
        fetched = fraction[persona, read, DENOISING, "", KEYS_VALUES]
        assert fetched[layer - 1, PERSONA] + fetched[layer - 1, TEMPLATE] > 0.8
        assert abs(fetched[layer, PERSONA]) < 0.06


def test_personas_without_an_effect_on_a_label_have_nothing_to_recover(tables: PatchTables) -> None:
    totals = tables.totals[(tables.totals["outcome"] == "expected_urgency") & (tables.totals["stratum"] == "all")]
    totals = totals[totals["quantity"] == "persona - neutral"].set_index(["persona", "read"])["value"]
    effects = tables.effects[tables.effects["outcome"] == "expected_urgency"]
    for read, personas in STILL.items():
        for persona in personas:
            assert abs(totals[persona, read]) < 0.03
            own = effects[(effects["persona"] == persona) & (effects["read"] == read) & (effects["stratum"] == "all")]
            assert own.loc[own["control"] == "", "shift"].abs().max() < 0.05


def test_a_nonsense_persona_moves_nothing_and_every_check_holds(tables: PatchTables, fraction: pd.Series) -> None:
    assert tables.check["same"].all()
    assert tables.sentences["neutral"].notna().all()
    for read, personas in MOVES.items():
        for persona in personas:
            assert fraction[persona, read, DENOISING, NONSENSE].abs().max() < 0.15
    totals = tables.totals[(tables.totals["outcome"] == "expected_urgency") & (tables.totals["stratum"] == "all")]
    assert totals.loc[totals["quantity"] == "neutral - base", "value"].abs().max() < 0.03


def test_emergent_facts_of_the_shipped_checkpoint_are_as_they_were(tables: PatchTables, fraction: pd.Series) -> None:
    """Regression values: nobody planted these, and another seed has others."""
    heads = tables.effects[(tables.effects["stream"] == HEAD_OUT) & (tables.effects["direction"] == DENOISING)]
    heads = heads[heads["outcome"] == "expected_urgency"].set_index(["persona", "read", "layer", "head"])["fraction"]
    assert heads["ed_physician", "latent", 2, 0] == pytest.approx(1.04, abs=0.05)
    assert heads["latent_only", "latent", 2, 0] == pytest.approx(0.86, abs=0.05)
    assert heads["ed_physician", "stated", 2, 0] == pytest.approx(0.48, abs=0.1)
    assert heads["ed_physician", "stated", 2, 2] == pytest.approx(0.52, abs=0.1)
    at = fraction["latent_only", "latent", DENOISING, "", RESID]
    assert at[2, TEMPLATE] == pytest.approx(0.89, abs=0.05)
    assert at[2, PERSONA] == pytest.approx(0.0, abs=0.02)
