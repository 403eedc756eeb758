"""Personas whose locus is known get the right verdict, and hardly ever a wrong definite one.

``pytest -m slow -s tests/mechanism/relation/test_simulated_personas.py`` prints the table of docs/relation.md.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.relation.locus import Locus, loci
from probe.mechanism.relation.simulated import KINDS, simulated_table, verdict_power
from probe.mechanism.relation.verdicts import VERDICTS, Change

CASES = 200


def found(rng: np.random.Generator, n: int) -> dict[str, Locus]:
    table = simulated_table(rng, n, wordings=2)
    judged = loci(table, base="controls", outcomes=["expected_urgency"])
    return {one.persona: one for one in judged if one.read == "distribution"}


def confusion(replicates: int) -> pd.DataFrame:
    """How often each kind of persona gets each verdict."""
    rng, counts = np.random.default_rng(0), {name: Counter[str]() for name in KINDS}
    for _ in range(replicates):
        for name, one in found(rng, CASES).items():
            if name in KINDS:
                counts[name][one.verdict] += 1
    return pd.DataFrame(counts).T.reindex(columns=list(VERDICTS)).fillna(0).astype(int)


def powers() -> dict[str, float]:
    """Probability of the right verdict at this n, from L and D of many cases and their errors; the least of three
    correlations of the two."""
    large, rng = found(np.random.default_rng(1), 20 * CASES), np.random.default_rng(2)

    def at_this_n(change: Change) -> Change:
        ends = [change.value + np.sqrt(20) * (end - change.value) for end in (change.low, change.high)]
        narrow = [change.value + np.sqrt(20) * (end - change.value) for end in (change.low_90, change.high_90)]
        return Change(change.value, *ends, *narrow, CASES, CASES // 2)

    power = {}
    for name, kind in KINDS.items():
        right = kind.verdicts[0]
        pair = (at_this_n(large[name].seen["L"]), at_this_n(large[name].seen["D"]))
        power[name] = min(verdict_power(pair, correlation, right, rng) for correlation in (-0.9, 0.0, 0.9))
    return power


@pytest.mark.parametrize("replicates", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_every_kind_of_persona_gets_its_verdict(replicates: int) -> None:
    table = confusion(replicates)
    power = powers() if replicates == 200 else {}
    print(f"\n{replicates} studies of {CASES} cases\n{table.assign(power=pd.Series(power)).to_string()}")
    for name, kind in KINDS.items():
        row = table.loc[name]
        right = int(row[list(kind.verdicts)].sum())
        wrong = replicates - right - int(row["cannot tell"])
        assert right >= 0.92 * replicates, (name, row.to_dict())
        assert wrong <= 0.05 * replicates, (name, row.to_dict())
        assert power.get(name, 1.0) >= 0.97, (name, power)


def test_too_few_cases_cannot_tell_instead_of_calling_an_effect_nothing() -> None:
    rng = np.random.default_rng(3)
    told = Counter(one.verdict for _ in range(8) for one in found(rng, 12).values() if one.persona in KINDS)
    assert told["cannot tell"] > 20
    latent = [found(rng, 12)["latent"].verdict for _ in range(8)]
    assert "neither" not in latent
