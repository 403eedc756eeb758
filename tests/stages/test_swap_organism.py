"""On the organism, whose personas act where it was planted, the text swap finds them there."""

from __future__ import annotations

import numpy as np
import pytest

from probe.mechanism.swap.paths import DIRECT, LATENT, TEXT
from probe.organism import planned
from probe.stages.swap import SwapTables, text_swap
from probe.study import Study

pytestmark = pytest.mark.slow

PLANTED = {"text_mediated": TEXT, "decoding_only": DIRECT, "latent_only": LATENT}
CASES = 60


@pytest.fixture(scope="module")
def study() -> Study:
    whole = Study.from_mapping(
        {
            "name": "organism-swap",
            "model": {"id": "organism"},
            "personas": ["builtin:diagnostics", {"id": "none", "text": None}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "capture": {"layers": [0]},
        }
    ).limited(CASES)
    mapping = whole.to_mapping()
    mapping["personas"] = [one for one in mapping["personas"] if one["id"] in (*PLANTED, "none")]
    return Study.from_mapping(mapping)


@pytest.fixture(scope="module")
def tables(study: Study, tmp_path_factory: pytest.TempPathFactory) -> SwapTables:
    return text_swap(study, store=tmp_path_factory.mktemp("organism") / "s")


def test_each_persona_is_found_where_it_was_planted(tables: SwapTables) -> None:
    pooled = tables.verdicts[(tables.verdicts["stratum"] == "all") & ~tables.verdicts["masked"]]
    assert pooled.set_index("persona")["verdict"].to_dict() == PLANTED
    assert tables.control["same"].all()


def test_contributions_are_those_of_the_plan(study: Study, tables: SwapTables) -> None:
    effects = tables.effects
    own = effects[(effects["outcome"] == "expected_urgency") & (effects["stratum"] == "all") & ~effects["masked"]]
    value = own.set_index(["persona", "quantity"])["value"]
    rank = np.arange(3)
    for persona, where in PLANTED.items():
        change, early = [], []
        for case in study.cases:
            mine, base = planned(study.persona(persona).text(), case), planned(None, case)
            assert mine is not None
            assert base is not None
            change.append((mine.reasoned - base.reasoned) @ rank)
            early.append((mine.direct - base.direct) @ rank)
        if where == LATENT:
            assert abs(np.mean(change)) < 0.02  # planned to leave the stated label as it is
            assert value[persona, "latent"] == pytest.approx(np.mean(early), abs=0.08)
            assert abs(np.mean(early)) > 0.2
        expected = {TEXT: 0.0, DIRECT: 0.0, LATENT: 0.0} | {where: float(np.mean(change))}
        assert value[persona, "text"] == pytest.approx(expected[TEXT], abs=0.08)
        assert value[persona, "direct"] == pytest.approx(expected[DIRECT], abs=0.08)


def test_only_the_persona_that_writes_another_text_is_told_by_it(tables: SwapTables) -> None:
    told = tables.identifiability
    bits = told[(told["stratum"] == "all") & ~told["masked"]].set_index("persona")
    low, high, p = (bits[name].to_dict() for name in ("low", "high", "p_adjusted"))
    assert low["text_mediated"] > 0.2
    assert p["text_mediated"] < 0.05
    assert max(high["decoding_only"], high["latent_only"]) < 0.1
