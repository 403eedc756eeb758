"""What a terminal shows of the relation: a verdict per persona, then sentences. Computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.report.numbers import decimal, interval, signed
from probe.report.relation_sentences import outcome_words, prediction_sentence, relation_sentence, sides_sentence
from probe.report.style import shown
from probe.stages.terminal import console, say
from probe.values import ALL

if TYPE_CHECKING:
    from probe.stages.relate import RelationTables


def show_relation(tables: RelationTables) -> None:
    """The verdicts against the first base, a sentence for each persona, and what the residuals say."""
    relation = tables.relation
    base = str(relation["base"].iloc[0])
    own = relation[relation["base"] == base]
    first = own.iloc[0]
    say(
        f"\nwhere a persona's effect is visible, in {outcome_words(first['outcome'], first['read'])} against "
        f"{'the mean of the control wordings' if base == 'controls' else shown(base)}; margin {decimal(first['delta'])}"
    )
    say("L: change of the latent label; D: what the stated label adds; T = L + D; 95 % intervals")
    console().print(_verdicts(own))
    for _, row in own[own["stratum"] == ALL].iterrows():
        say(relation_sentence(row))
    for other in relation["base"].unique()[1:]:
        _tell_other(own, relation[relation["base"] == other], str(other))
    say("L and D say where an effect is visible, not where it is caused; `probe swap` asks the latter")
    if len(tables.prediction):
        say(prediction_sentence(tables.prediction))
    if len(tables.sides):
        say(sides_sentence(tables.sides))


def _verdicts(rows: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("persona", "cases", "L", "D", "verdict"):
        table.add_column(name, justify="right" if name in "LD" else "left", no_wrap=True)
    last = ""
    for _, row in rows.iterrows():
        values = [
            f"{signed(row[name], 2)} {interval(row[f'{name}_low'], row[f'{name}_high'])}".strip() for name in "LD"
        ]
        name = shown(row["persona"]) if row["persona"] != last else ""
        table.add_row(Text(name), Text(shown(row["stratum"])), *map(Text, values), str(row["verdict"]))
        last = row["persona"]
    return table


def _tell_other(own: pd.DataFrame, other: pd.DataFrame, base: str) -> None:
    """Which verdicts another base changes."""
    both = own.merge(other, on=["persona", "stratum"], suffixes=("", "_other"))
    differ = both[both["verdict"] != both["verdict_other"]]
    if differ.empty:
        say(f"against {shown(base)} every verdict is the same")
        return
    told = ", ".join(
        f"{shown(row['persona'])} ({shown(row['stratum'])}) {row['verdict_other']}" for _, row in differ.iterrows()
    )
    say(f"against {shown(base)} these differ: {told}")
