"""On the organism, whose 5,000 cases are counted, a study's verdict is the one that the census gives.

``pytest -m slow -s tests/mechanism/relation/test_relation_organism.py`` prints the table of docs/relation.md.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe.cli import app
from probe.mechanism.relation.locus import loci
from probe.mechanism.relation.verdicts import LEAST_MASS, MARGIN, VERDICTS, true_verdict
from probe.organism import Census, read_census
from probe.organism.personas import DIAGNOSTICS

LETTERS = ("A", "B", "C")
PER_STRATUM = 300


@pytest.fixture(scope="module")
def census() -> Census:
    return read_census()


def diagnostics(census: Census) -> list[str]:
    named = [role.id.replace("-", "_").replace(" ", "_") for role in DIAGNOSTICS.values()]
    return [name for name in named if name in census.personas]


def cells(census: Census, personas: list[str], chosen: np.ndarray) -> pd.DataFrame:
    """Rows of the census as a table of cells, for these case numbers."""
    frames = []
    for persona in personas:
        arm = census.arm(persona)
        answer = np.full((len(census.target), 3), np.nan)
        answer[arm.realised.answered] = arm.answer
        label = arm.realised.label
        frame = pd.DataFrame({"case": [census.cases[i].id for i in chosen], "persona": persona})
        frame["family"] = [census.cases[i].family for i in chosen]
        frame["stratum"] = census.strata[chosen]
        frame["target"] = np.array(LETTERS)[census.target[chosen]]
        frame["status"] = [arm.status[i] for i in chosen]
        frame["y_gen"] = [LETTERS[label[i]] if label[i] >= 0 else None for i in chosen]
        frame["label_mass"] = arm.realised.mass[chosen]
        for k, letter in enumerate(LETTERS):
            frame[f"logp_{letter}"] = arm.prompt_end[chosen, k]
            frame[f"stated_logp_{letter}"] = answer[chosen, k]
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": list(LETTERS), "high_risk": "C"}
    return table


def truth_of(census: Census, persona: str) -> tuple[float, float, float, frozenset[str]]:
    """L, the ends of D (apart where answers state no label) and the verdicts that all cases allow; none where L, D or
    what is left open of D lies too near to the margin. A label mass near its limit allows to call it too small."""
    own, base = census.arm(persona).realised, census.arm("none").realised
    urgency = np.arange(3)
    latent = float(((own.latent - base.latent) @ urgency).mean())
    total = []
    for end in (0.0, 2.0):
        arms = [np.full(len(r.label), filled) for r, filled in ((own, end), (base, 2.0 - end))]
        for filled, r in zip(arms, (own, base), strict=True):
            filled[r.answered] = r.stated @ urgency
        total.append(float((arms[0] - arms[1]).mean()))
    ends = [one - latent for one in total]
    found = {true_verdict(latent, end, MARGIN) for end in ends}
    allowed = {str(one) for one in found} if len(found) == 1 and None not in found else set()
    mass = float(min(own.mass.mean(), base.mass.mean()))
    if mass < 1.5 * LEAST_MASS:
        allowed = ({"no latent label at this site"} | allowed) if mass > 0.5 * LEAST_MASS else {*VERDICTS[-1:]}
    return latent, ends[0], ends[1], frozenset(allowed)


def drawn(census: Census, rng: np.random.Generator) -> np.ndarray:
    """Case numbers of a study: so many of each stratum, without replacement."""
    strata = census.strata
    parts = [rng.choice(np.flatnonzero(strata == s), PER_STRATUM, replace=False) for s in np.unique(strata)]
    return np.concatenate(parts)


@pytest.mark.slow
def test_the_verdict_is_that_of_the_census_in_at_least_184_of_200_resampled_studies(census: Census) -> None:
    personas, rng = diagnostics(census), np.random.default_rng(0)
    counts: dict[str, Counter[str]] = {persona: Counter() for persona in personas}
    for _ in range(200):
        table = cells(census, ["none", *personas], drawn(census, rng))
        for one in loci(table, base="none", outcomes=["expected_urgency"]):
            if one.stratum == "all" and one.read == "distribution":
                counts[one.persona][one.verdict] += 1
    shown = pd.DataFrame(counts).T.reindex(columns=list(VERDICTS)).fillna(0).astype(int)
    truth = pd.DataFrame({p: truth_of(census, p) for p in personas}, index=["L", "D_low", "D_high", "truth"]).T
    print("\n" + shown.join(truth).to_string())
    held = [persona for persona in personas if truth.loc[persona, "truth"]]
    assert len(held) >= 5
    for persona in held:
        right = sum(counts[persona][verdict] for verdict in truth.loc[persona, "truth"])
        wrong = 200 - right - counts[persona]["cannot tell"]
        assert right >= 184, (persona, counts[persona])
        assert wrong <= 10, (persona, counts[persona])


@pytest.mark.slow
def test_probe_relate_on_the_built_in_cases_gives_the_verdicts_of_the_census(
    census: Census, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    personas = diagnostics(census)
    cells(census, ["none", *personas], np.flatnonzero(census.first(PER_STRATUM))).to_csv(
        tmp_path / "t.csv", index=False
    )
    app(["relate", str(tmp_path / "t.csv"), "--base", "none", "--out", str(tmp_path)], standalone_mode=False)
    found = pd.read_csv(tmp_path / "relation.csv").set_index(["persona", "stratum"])["verdict"]
    for persona in personas:
        if truth := truth_of(census, persona)[3]:
            assert found[persona, "all"] in truth
    assert "not where it is caused" in capsys.readouterr().out


def test_the_census_gives_l_and_d_that_a_second_way_of_counting_gives(census: Census) -> None:
    persona = "decoding_only"
    latent, low, high, _ = truth_of(census, persona)
    table = cells(census, ["none", persona], np.arange(0, len(census.target), 50))
    found = {one.read: one for one in loci(table, base="none", outcomes=["expected_urgency"]) if one.stratum == "all"}
    seen = found["distribution"].seen
    assert abs(seen["L"].value - latent) < 4 * (seen["L"].high - seen["L"].low) / 3.92
    assert low - 0.3 < seen["D"].value < high + 0.3
