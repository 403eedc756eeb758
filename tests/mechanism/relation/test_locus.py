"""T, L and D of small tables that can be checked by hand, and of tables with refusals, little mass and controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.relation.locus import Locus, loci, locus_table
from probe.mechanism.relation.verdict_table import relation
from probe.values import ProbeError

LABELS = ("A", "B", "C")


def cells(persona: str, latent: np.ndarray, stated: np.ndarray, **more: object) -> pd.DataFrame:
    """Cells of one persona with these distributions over A, B, C [case, label]; a stated row of NaN is a refusal."""
    n = len(latent)
    frame = pd.DataFrame({"case": [f"c{i}" for i in range(n)], "persona": persona, "target": "B"})
    answered = ~np.isnan(stated).any(1)
    frame["status"] = np.where(answered, "parsed", "refused")
    frame["y_gen"] = [LABELS[row.argmax()] if ok else None for row, ok in zip(stated, answered, strict=True)]
    for k, label in enumerate(LABELS):
        frame[f"logp_{label}"], frame[f"stated_logp_{label}"] = np.log(latent[:, k]), np.log(stated[:, k])
    return frame.assign(**more)


def table_of(*frames: pd.DataFrame) -> pd.DataFrame:
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": list(LABELS), "high_risk": "C"}
    return table


def spread(rng: np.random.Generator, n: int, towards: float = 0.0) -> np.ndarray:
    logits = rng.normal(0, 0.5, (n, 3)) + towards * np.arange(3)
    return np.asarray(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))


def one(found: list[Locus], persona: str = "p", read: str = "distribution") -> Locus:
    return next(
        each for each in found if (each.persona, each.read, each.outcome) == (persona, read, "expected_urgency")
    )


def urgency(p: np.ndarray) -> np.ndarray:
    return np.asarray(p @ np.arange(3))


def test_t_l_and_d_are_paired_mean_differences_of_the_expected_urgency_and_add_up() -> None:
    rng = np.random.default_rng(0)
    latent, stated = spread(rng, 50), spread(rng, 50)
    base = (spread(rng, 50), spread(rng, 50))
    shuffled = cells("p", latent, stated).sample(frac=1, random_state=0)
    found = one(loci(table_of(cells("none", *base), shuffled)))
    values = {quantity: change.value for quantity, change in found.seen.items()}
    assert values["L"] == pytest.approx((urgency(latent) - urgency(base[0])).mean())
    assert values["T"] == pytest.approx((urgency(stated) - urgency(base[1])).mean())
    assert values["D"] == pytest.approx(values["T"] - values["L"])
    labels = one(loci(table_of(cells("none", *base), cells("p", latent, stated))), read="label")
    assert labels.seen["T"].value == pytest.approx((stated.argmax(1) - base[1].argmax(1)).mean())


def test_the_base_is_the_mean_of_the_control_wordings_and_no_persona_stands_beside_it() -> None:
    rng = np.random.default_rng(1)
    parts = [(spread(rng, 30), spread(rng, 30)) for _ in range(4)]
    wordings = [
        cells("control", *p, role="control", wording=f"w{i}", condition=f"w{i}") for i, p in enumerate(parts[:2])
    ]
    others = [
        cells(name, *p, role="", wording="w0", condition="w0") for name, p in zip(("none", "p"), parts[2:], strict=True)
    ]
    found = loci(table_of(*wordings, *others), outcomes=["expected_urgency"])
    assert list(dict.fromkeys(each.base for each in found)) == ["controls", "none"]
    mean = (urgency(parts[0][0]) + urgency(parts[1][0])) / 2
    assert one(found).seen["L"].value == pytest.approx((urgency(parts[3][0]) - mean).mean())
    with pytest.raises(ProbeError, match="is not in the table"):
        loci(table_of(*wordings, *others), base="nobody")


def test_refusals_leave_l_whole_and_bound_d_and_a_verdict_holds_only_if_no_answer_could_change_it() -> None:
    rng = np.random.default_rng(2)
    n = 200
    same = spread(rng, n)
    refused = same.copy()
    refused[: n // 5] = np.nan
    whole = one(loci(table_of(cells("none", same, same), cells("p", same, same))))
    assert whole.verdict == "neither"
    found = one(loci(table_of(cells("none", same, same), cells("p", same, refused))))
    assert found.seen["L"].n == n
    assert found.seen["D"].n == n - n // 5
    assert found.unstated == (0.2, 0.0)
    gap = urgency(same)[: n // 5].sum() / n
    assert found.lowest["D"].value == pytest.approx(-gap)
    assert found.highest["D"].value == pytest.approx(2 * 0.2 - gap)
    assert found.status("D") == found.verdict == "cannot tell"
    few = same.copy()
    few[:4] = np.nan
    assert one(loci(table_of(cells("none", same, same), cells("p", same, few)))).verdict == "neither"


def test_little_label_mass_is_no_latent_label_and_a_change_of_mass_tells_the_worst_case() -> None:
    rng = np.random.default_rng(3)
    p = spread(rng, 100)
    base = cells("none", p, p, label_mass=0.6)
    silent = one(loci(table_of(base, cells("p", p, p, label_mass=0.02))))
    assert silent.verdict == "no latent label at this site"
    quiet = one(loci(table_of(base, cells("p", p, p, label_mass=0.4))))
    assert quiet.verdict == "neither"
    low, high = quiet.worst["L"]
    assert low == pytest.approx(0.4 * urgency(p).mean() - 0.6 * urgency(p).mean() - 0.4 * 2)
    assert high == pytest.approx(0.4 * urgency(p).mean() + 0.6 * 2 - 0.6 * urgency(p).mean())
    assert one(loci(table_of(base, cells("p", p, p, label_mass=0.58)))).worst == {}


def test_intervals_widen_where_cases_are_twins() -> None:
    rng = np.random.default_rng(4)
    base, moved = spread(rng, 40), spread(rng, 40, 0.3)
    twins = [np.repeat(x, 2, axis=0) for x in (base, moved)]
    family = [f"f{i // 2}" for i in range(80)]
    alone = one(loci(table_of(cells("none", twins[0], twins[0]), cells("p", twins[1], twins[1]))))
    told = one(
        loci(table_of(cells("none", twins[0], twins[0], family=family), cells("p", twins[1], twins[1], family=family)))
    )
    widths = [each.seen["L"].high - each.seen["L"].low for each in (alone, told)]
    assert widths[1] == pytest.approx(widths[0] * np.sqrt(2), rel=0.05)
    assert told.seen["L"].families == 40


def test_rows_pair_within_their_rotation_and_a_case_is_the_mean_of_its_pairs() -> None:
    rng = np.random.default_rng(5)
    parts = {(name, r): spread(rng, 20) for name in ("none", "p") for r in (0, 1)}
    frames = [cells(name, x, x, rotation=r, wording="w0", condition=f"r{r}") for (name, r), x in parts.items()]
    found = one(loci(table_of(*frames)))
    expected = np.mean([urgency(parts["p", r]) - urgency(parts["none", r]) for r in (0, 1)], axis=0)
    assert found.seen["L"].value == pytest.approx(expected.mean())
    assert found.seen["L"].n == 20


def test_strata_of_opposite_signs_are_told_apart_where_the_pool_shows_nothing() -> None:
    rng = np.random.default_rng(6)
    n = 240
    base = spread(rng, n)
    odds = np.log(base) + np.where(np.arange(n) < n // 2, 0.8, -0.8)[:, None] * np.arange(3)
    moved = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    stratum = ["up"] * (n // 2) + ["down"] * (n // 2)
    found = relation(
        loci(table_of(cells("none", base, base, stratum=stratum), cells("p", moved, moved, stratum=stratum)))
    ).set_index("stratum")
    assert found.loc["up", "L"] > 0.2
    assert found.loc["down", "L"] < -0.2
    assert found.loc[["up", "down"], "verdict"].tolist() == ["latent", "latent"]
    assert found.loc["all", "verdict"] != "latent"


def test_a_table_of_labels_alone_gives_the_label_read_and_one_without_either_is_refused() -> None:
    rng = np.random.default_rng(7)
    p, q = spread(rng, 60), spread(rng, 60, 1.0)
    table = table_of(cells("none", p, p), cells("p", q, q))
    table["y_latent"] = table["y_gen"]
    plain = table.drop(columns=[name for name in table if "logp_" in name])
    plain.attrs = table.attrs
    found = loci(plain)
    assert {each.read for each in found} == {"label"}
    assert relation(found)["read"].unique().tolist() == ["label"]
    with pytest.raises(ProbeError, match="takes both labels"):
        loci(plain.drop(columns="y_latent"))


def test_the_tidy_table_has_a_row_per_quantity_and_the_ratio_only_where_t_is_resolved() -> None:
    rng = np.random.default_rng(8)
    p, q = spread(rng, 80), spread(rng, 80, 1.0)
    found = loci(table_of(cells("none", p, p), cells("p", q, q), cells("same", p, p)))
    tidy = locus_table(found)
    assert set(tidy["quantity"]) == {"T", "L", "D"}
    assert len(tidy) == 3 * len(found) == 3 * 2 * 3 * 2
    rows = relation(found).set_index("persona")
    assert rows.loc["p", "share"] == pytest.approx(1.0)
    assert pd.isna(rows.loc["same", "share"])
    with pytest.raises(ProbeError, match="margin of equivalence is positive"):
        loci(table_of(cells("none", p, p), cells("p", q, q)), delta=0.0)
    with pytest.raises(ProbeError, match="accuracy"):
        loci(table_of(cells("none", p, p), cells("p", q, q)), outcomes=["acuracy"])
