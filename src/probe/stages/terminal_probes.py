"""What a terminal shows of probes: the best layer of each target with what stands beside it. Computes nothing."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.mechanism.probes.tables import RANDOM, RIDGE
from probe.mechanism.probes.transfer import OTHERS
from probe.report.numbers import decimal, interval, listed, p_value, plural
from probe.stages.terminal import console, say

ALL_PLAIN = "baseline: all plain"


def show_probes(table: pd.DataFrame) -> None:
    """One line per target and position: the best layer, its p over everything that was looked at, and the baselines."""
    ridge = table[(table["method"] == RIDGE) & table["value"].notna()]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("target", "position"):
        shown.add_column(name, no_wrap=True, max_width=14)
    for name in ("layer", "AUROC [95 %]", "max-T p", "plain", "random", "AUPRC (base)", "balanced"):
        shown.add_column(name, justify="right", no_wrap=True)
    for (target, position), part in ridge.groupby(["target", "position"], sort=False):
        best = part.iloc[int(part["value"].argmax())]
        shown.add_row(
            *(Text(str(target)), Text(str(position)), str(best["layer"])),
            f"{decimal(best['value'])} {interval(best['low'], best['high'])}",
            p_value(best["p_adjusted"]),
            *(decimal(_beside(table, best, method)) for method in (ALL_PLAIN, RANDOM)),
            f"{decimal(best['auprc'])} ({decimal(best['base_rate'])})",
            decimal(best["balanced_accuracy"]),
        )
    tested = int(ridge["p"].notna().sum())
    say("\nwhat a linear probe reads from the residual stream: its best layer, judged on other case families")
    console().print(shown)
    if tested:
        least = 1 / (1 + int(ridge["permutations"].max()))
        say(
            f"max-T p: for the largest of all {plural(tested, 'probe')} (targets x positions x layers), at least "
            f"{p_value(least)} with so many permutations; plain: margin, label log-ratios, length and persona"
        )
    for note, part in ridge[ridge["note"] != ""].groupby("note", sort=False):
        say(f"{listed(list(part['target'].unique()))}: {note}")
    for target in table.loc[table["value"].isna(), "target"].unique():
        notes = table.loc[(table["target"] == target) & table["value"].isna(), "note"]
        say(f"{target}, {plural(len(notes), 'probe')}: {notes.iloc[0]}")


def _beside(table: pd.DataFrame, best: pd.Series, method: str) -> float | None:
    rows = table[
        (table["method"] == method) & (table["target"] == best["target"]) & (table["position"] == best["position"])
    ]
    return float(rows["value"].iloc[0]) if len(rows) else None


def show_transfer(table: pd.DataFrame) -> None:
    """How far readouts hold for a persona, or a wording, that did not fit them: least and mean AUROC over them."""
    if table.empty:
        return
    for by, part in table.groupby("by", sort=False):
        _tell_transfer(part, str(by))


def _tell_transfer(table: pd.DataFrame, by: str) -> None:
    held = table[table["fitted_on"] == OTHERS]
    held = held if len(held) else table[table["fitted_on"] != table["judged_on"]]
    own = table[table["fitted_on"] == table["judged_on"]]
    for (target, position), part in held[held["value"].notna()].groupby(["target", "position"], sort=False):
        same = own.loc[(own["target"] == target) & (own["position"] == position), "value"].mean()
        worst = part.iloc[int(part["value"].argmin())]
        say(
            f"{target} at {position}, layer {worst['layer']}: fitted on other {by}s AUROC "
            f"{decimal(part['value'].mean())} on average, least {decimal(worst['value'])} ({worst['judged_on']}); "
            f"fitted on the {by} itself {decimal(same)}"
        )
