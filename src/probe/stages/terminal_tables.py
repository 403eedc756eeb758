"""What a terminal shows of the tables of behaviour: differences, noise floor, causes, rankings. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.report.numbers import SIGNIFICANT, decimal, interval, listed, p_value, plural, signed
from probe.report.style import arms, shown
from probe.stages.analysis import BehaviourTables
from probe.stages.terminal import WIDE, console, say
from probe.values import ALL

COMPARED = {
    "accuracy": "stated accuracy",
    "accuracy_latent": "latent accuracy",
    "consistency_strict": "CR strict",
    "risk_propensity": "high risk",
}
"""The differences that a terminal shows; the CSV has all."""

CAUSES = {
    "unparsed": "no label",
    "near_tie": "near tie",
    "token_variant": "token variant",
    "draw": "drawn",
    "late_letter": "later letter",
    "none": "none of these",
}


def show_behaviour(tables: BehaviourTables) -> None:
    """Differences from the base, planned contrasts, the noise floor, and why the two labels disagree."""
    personas = [str(name) for name in tables.metrics["persona"].unique()]
    if len(tables.comparisons):
        show_comparisons(tables.comparisons)
    elif len(personas) > 1:
        say(
            "nothing is compared: the base persona (by default none) is not there; "
            f"name one with --base: {listed(personas)}"
        )
    show_floor(tables.floor)
    if len(tables.causes):
        show_causes(tables.causes)
    if len(tables.positions):
        show_positions(tables.positions)


def show_comparisons(comparisons: pd.DataFrame) -> None:
    """Differences from the first base with intervals; a star where the adjusted p is below .05; then the tests made."""
    base = str(comparisons["base"].iloc[0])
    rows = comparisons[comparisons["base"] == base]
    title = f"difference from {shown(base)} [95 %]; * Holm-adjusted p < {decimal(SIGNIFICANT)}"
    _show_by_arm(rows, "metric", COMPARED, _difference, title)
    tell_comparisons(comparisons)


def tell_comparisons(comparisons: pd.DataFrame) -> None:
    """What a reader must know beside any table: signs that differ, the planned contrasts, and how many tests."""
    rows = comparisons[comparisons["base"] == comparisons["base"].iloc[0]]
    differ = rows[rows["signs_differ"] & rows["metric"].isin(list(COMPARED))]
    for metric, part in differ.groupby("metric", sort=False):
        names = ", ".join(shown(persona) for persona in part["persona"].unique())
        say(f"strata and pool differ in sign ({COMPARED[str(metric)]}): {names}; the pooled figure hides it")
    planned = comparisons[comparisons["family"] == "confirmatory"]
    for _, row in planned.iterrows():
        say(
            f"planned: {row['metric']} of {shown(row['persona'])} against {shown(row['base'])}, "
            f"{shown(row['stratum'])}: {_difference(row).strip()}, {_test(row)}"
        )
    for one in comparisons.attrs.get("waiting", ()):
        where = f"{one['persona']} against {one['base']}, {one.get('stratum', ALL)}"
        say(f"planned, but without captured cells: {one['metric']} of {where}")
    tested = comparisons["family"][comparisons["p"].notna()].value_counts()
    say(
        f"{tested.get('confirmatory', 0)} planned and {tested.get('exploratory', 0)} exploratory tests, "
        "adjusted apart; comparisons.csv has all of them"
    )


def _test(row: pd.Series) -> str:
    """The test of a planned contrast, or why there is none."""
    if pd.isna(row["p"]):
        return "no test: " + (row["test"] or row["note"] or "undefined")
    return f"p {p_value(row['p'])} ({row['test']}), adjusted over the planned {p_value(row['p_holm'])}"


def _difference(row: pd.Series) -> str:
    if pd.isna(row["difference"]):
        return decimal(None)
    star = "*" if row["p_holm"] < SIGNIFICANT else " "
    return f"{signed(row['difference'], 2)} {interval(row['low'], row['high'])}{star}"


def show_floor(floor: pd.DataFrame) -> None:
    """Effects against the spread of the control wordings; nothing where there are no controls."""
    if floor.empty:
        return
    k = int(floor["k"].max())
    title = (
        f"noise floor: distance from {plural(k, 'neutral wording')} (± what rewording does); * Holm-adjusted p < .05"
    )
    _show_by_arm(floor, "metric", COMPARED, _above_floor, title)


def _above_floor(row: pd.Series) -> str:
    if pd.isna(row["effect"]):
        return decimal(None)
    star = "*" if row["p_holm"] < SIGNIFICANT else " "
    return f"{signed(row['effect'], 2)} (±{decimal(row['floor_half'])}){star}"


def show_causes(causes: pd.DataFrame) -> None:
    """Why the stated label departs from the latent one: exclusive shares of the disagreeing cells."""
    title = "why the labels disagree: share of the disagreeing cells, each under its first cause"
    _show_by_arm(causes, "cause", CAUSES, _share_of, title)


def _share_of(row: pd.Series) -> str:
    if pd.isna(row["share"]):
        return decimal(None)
    return f"{decimal(row['share'])} ({row['k_share']:.0f}/{row['n_disagree']:.0f})"


def _show_by_arm(
    rows: pd.DataFrame, key: str, columns: Mapping[str, str], told: Callable[[pd.Series], str], title: str
) -> None:
    """One line per persona and stratum, one column per value of ``key`` among ``columns``; two where it is narrow."""
    out = console()
    found = [name for name in columns if (rows[key] == name).any()][: None if out.width >= WIDE else 2]
    cells = {(row[key], row["persona"], row["stratum"]): row for _, row in rows[rows[key].isin(found)].iterrows()}
    table = _table(title)
    table.add_column("persona", no_wrap=True, max_width=18)
    table.add_column("cases", no_wrap=True, max_width=12)
    for name in found:
        table.add_column(columns[name], justify="right", no_wrap=True)
    personas, strata = arms(rows)
    for persona in personas:
        for i, stratum in enumerate(strata):
            arm = [cells.get((name, persona, stratum)) for name in found]
            values = [decimal(None) if row is None else told(row) for row in arm]
            table.add_row(Text(shown(persona) if i == 0 else ""), Text(shown(stratum)), *map(Text, values))
    out.print(table)


def show_positions(positions: pd.DataFrame) -> None:
    """The share of each letter over all rotations, and the test of no position bias."""
    rows = positions[positions["stratum"] == ALL]
    letters = list(rows["letter"].drop_duplicates())
    table = _table("position bias: share of each letter over all rotations (none: equal shares)")
    for name in ("persona", "labels"):
        table.add_column(name, no_wrap=True)
    for name in (*letters, "p"):
        table.add_column(str(name), justify="right")
    for (persona, labels), part in rows.groupby(["persona", "labels"], sort=False):
        share = part.set_index("letter")["share"]
        values = (*(decimal(share[letter]) for letter in letters), p_value(float(part["p"].iloc[0])))
        table.add_row(Text(shown(str(persona))), str(labels), *values)
    console().print(table)


def show_rankings(found: Mapping[str, pd.DataFrame], base: str | None) -> None:
    """Mean reciprocal ranks with their paired tests, and the kappa of every two judges by band of confidence."""
    ranked = found["rankings"]
    table = _table("mean reciprocal rank [95 %]" + (f"; difference from {shown(base)}" if base else ""))
    for name in ("persona", "MRR", "cases", *(("difference", "p", "Holm") if base else ())):
        table.add_column(name, justify="left" if name == "persona" else "right", no_wrap=True)
    for _, row in ranked.iterrows():
        values = [f"{decimal(row['value'])} {interval(row['low'], row['high'])}", f"{row['n']}"]
        if base:
            own = row["persona"] == base
            shift = f"{signed(row['difference'], 2)} {interval(row['difference_low'], row['difference_high'])}"
            values += ["", "", ""] if own else [shift, p_value(row["p"]), p_value(row["p_holm"])]
        table.add_row(Text(shown(row["persona"])), *values)
    console().print(table)
    for _, row in found.get("agreement", pd.DataFrame()).iterrows():
        kappa = f"{decimal(row['kappa'])} {interval(row['low'], row['high'])}".strip()
        judges, n = f"{row['judge_a']} and {row['judge_b']}", plural(row["n"], "case")
        say(f"{judges}, confidence {row['band']}: kappa {kappa} over {n}")


def _table(title: str) -> Table:
    """A table under its title, which stands on one line: in the table it would wrap to the table's width."""
    say(f"\n{title}")
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
