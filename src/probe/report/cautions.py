"""What to keep in mind while reading a report, and what must be seen first. Knows tidy tables."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.report.effect_sentences import in_words
from probe.report.figures import Tables
from probe.report.findings import arm_name
from probe.report.numbers import SIGNIFICANT, decimal, listed, plural
from probe.report.sites import LOW_MASS
from probe.report.style import shown
from probe.values import ALL

LOW_PARSE = 0.9
"""Below this share of parsed answers a persona is warned about at the head of the report."""


def warnings(tables: Tables) -> list[str]:
    """What a reader must see before any number: strata that contradict the pool, weak labels, answers not parsed."""
    return [
        *_hidden_by_the_pool(tables.comparisons),
        *_weak_latent(tables.metrics),
        *_rarely_parsed(tables.metrics),
        *_position_bias(tables.positions),
        *_outside_the_plan(tables.metrics),
    ]


def cautions(tables: Tables) -> list[str]:
    """What to keep in mind while reading: tests made, noise floor, unparsed answers, undefined and absent metrics."""
    absent = [str(sentence) for sentence in tables.metrics.attrs.get("absent", ())]
    return [*_tests(tables), *_no_floor(tables), *_unparsed(tables.metrics), *_undefined(tables.metrics), *absent]


def _hidden_by_the_pool(comparisons: pd.DataFrame) -> Iterator[str]:
    if comparisons.empty or not comparisons["signs_differ"].any():
        return
    hidden = comparisons[comparisons["signs_differ"].astype(bool)]
    told = []
    for metric, part in hidden.groupby("metric", sort=False):
        told.append(f"{in_words(str(metric))} ({listed([shown(name) for name in part['persona'].drop_duplicates()])})")
    yield (
        f"The pooled figures hide opposite effects: strata and pool differ in sign for {listed(told, most=4)}. "
        "Read the strata, not “all cases”, there."
    )


def _weak_latent(metrics: pd.DataFrame) -> Iterator[str]:
    mass = metrics[metrics["metric"] == "label_mass"]
    rows = mass[mass["value"] < LOW_MASS]
    if rows.empty:
        return
    where = listed([f"{arm_name(row)} ({decimal(row['value'])})" for _, row in rows.iterrows()])
    if len(rows) == len(mass) > 1:
        ends = dict.fromkeys((decimal(rows["value"].min()), decimal(rows["value"].max())))
        where = f"every persona in every stratum ({' to '.join(ends)})"
    yield (
        f"The labels together hold less than half of the probability at the end of the prompt for {where}: "
        "there the latent label, consistency and calibration mean little."
    )


def _rarely_parsed(metrics: pd.DataFrame) -> Iterator[str]:
    rows = metrics[(metrics["metric"] == "parse_rate") & (metrics["value"] < LOW_PARSE)]
    strata = rows[rows["stratum"] != ALL]
    rows = strata if len(strata) else rows
    if len(rows):
        told = [f"{arm_name(row)} {decimal(row['value'])} of {plural(row['n'], 'cell')}" for _, row in rows.iterrows()]
        yield (
            f"Many answers state no label that could be parsed: {listed(told)}. Their stated accuracy, consistency and "
            "risk say as much about refusing or rambling as about judgement."
        )


def _position_bias(positions: pd.DataFrame) -> Iterator[str]:
    if positions.empty:
        return
    arms = _letter_tests(positions)
    biased = arms[(arms["p"] < SIGNIFICANT) & (arms["stratum"] == ALL)]
    if len(biased):
        told = [f"{shown(row['persona'])}, {row['labels']}" for _, row in biased.iterrows()]
        yield (
            f"Letters are preferred for their place: with rotated options the letters are not used equally by "
            f"{listed(told)} (unadjusted p < .05 of {plural(len(arms[arms['stratum'] == ALL]), 'arm')})."
        )


def _outside_the_plan(metrics: pd.DataFrame) -> Iterator[str]:
    rows = metrics[(metrics["metric"] == "accuracy") & (metrics["stratum"] == ALL)]
    if rows.empty or not rows["planned"].notna().any():
        return
    out = rows[rows["n_planned"] < rows["n"]]
    if len(out):
        told = [
            f"{shown(row['persona'])} {row['n'] - row['n_planned']:.0f} of {row['n']:.0f}" for _, row in out.iterrows()
        ]
        yield (
            f"Cells outside the organism's plan: {listed(told)}. Nothing is known of what the organism should do "
            "there; planned values leave them out."
        )


def _tests(tables: Tables) -> Iterator[str]:
    compared = tables.comparisons
    tested = compared[compared["p"].notna()] if len(compared) else compared
    letters = _letter_tests(tables.positions)
    further = {"all personas at once": tables.omnibus, "the noise floor": tables.floor, "letter positions": letters}
    counts = {name: int(table["p"].notna().sum()) for name, table in further.items() if len(table)}
    total = len(tested) + sum(counts.values())
    if not total:
        return
    told = []
    if len(tested):
        names = listed([in_words(name) for name in tested["metric"].drop_duplicates()], most=12)
        decided = int((tested["family"] == "confirmatory").sum()) if "family" in tested else 0
        split = f"{decided} of them decided beforehand and adjusted apart, the others exploratory" if decided else ""
        split = split or "all of them exploratory: no contrast was decided beforehand"
        told.append(f"{len(tested)} paired comparisons ({names}; {split})")
    told += [f"{n} of {name}" for name, n in counts.items() if n]
    yield (
        f"{plural(total, 'test')} were made: {listed(told)}. Every p in a sentence or behind a star is Holm-adjusted "
        f"over all tests of its family{', but those of letter positions' if len(letters) else ''}; the tables have the "
        "raw p beside it. Differences of ECE, and of scores over cells that a persona can select, are described, not "
        "tested."
    )


def _letter_tests(positions: pd.DataFrame) -> pd.DataFrame:
    """One row per test of label-position bias; the table repeats it for each letter."""
    return positions.drop_duplicates(["labels", "persona", "stratum"]) if len(positions) else positions


def _no_floor(tables: Tables) -> Iterator[str]:
    if len(tables.comparisons) and tables.floor.empty:
        yield (
            "No set of neutral control wordings was captured (builtin:controls), so it is not known how far a mere "
            "change of wording moves these metrics; a persona effect counts only where it exceeds that."
        )
    elif len(tables.floor):
        least = tables.floor["p_rank_min"].min() if "p_rank_min" in tables.floor else None
        if least is not None and pd.notna(least):
            yield (
                f"The noise floor's rank p cannot fall below {decimal(float(least), 3)} with so many control wordings; "
                "the verdicts rest on the t test. To lie outside the range of the controls alone is no evidence."
            )


def _unparsed(metrics: pd.DataFrame) -> Iterator[str]:
    rows = metrics[(metrics["metric"] == "parse_rate") & (metrics["stratum"] == ALL) & (metrics["value"] < 1)]
    if not rows.empty:
        told = [
            f"{shown(row['persona'])} {row['n'] - row['counts']['k']:.0f} of {row['n']}" for _, row in rows.iterrows()
        ]
        yield (
            f"Answers without a parsed label: {listed(told)}. They count as wrong, as not high-risk and, in strict "
            "consistency, as mismatches; plain consistency leaves them out."
        )


def _undefined(metrics: pd.DataFrame) -> Iterator[str]:
    rows = metrics[(metrics["metric"] == "risk_sensitivity") & metrics["note"].str.contains("type II|error at all")]
    if not rows.empty:
        yield (
            f"Risk sensitivity is undefined in {plural(len(rows), 'arm')} without a type II error; the smoothed "
            "log-ratio and both counts stand in the tables."
        )
