"""The figure of what steering costs: one row per arm, one column per cost. Knows a tidy table; computes nothing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from probe.mechanism.steering.controls import KINDS, RANDOM
from probe.report.drawn import Drawn, explained, said
from probe.report.numbers import decimal
from probe.report.style import INK, PAGE_HEIGHT, SOFT, TEXT_WIDTH, laid_out, shown, styled

COLUMNS = {
    "parse_rate": "parse\nrate",
    "refusal_rate": "refusals",
    "n_tokens": "tokens",
    "repetition": "repeated\n4-grams",
    "label_mass": "label\nmass",
    "entropy": "entropy\n(nats)",
    "fluency_none": "fluency,\nno\npersona",
    "fluency_prompted": "fluency,\nprompted",
    "off_target_accuracy": "other\ntask:\naccuracy",
    "off_target_kl": "other\ntask:\nKL (nats)",
}
"""The columns, each with its heading."""

ROWS = ("none", "prompted", "reworded", "steered", "ablated", "label_contrast", "nonsense", "other_persona")
"""Kinds of arm with a row; of several other personas, and of random directions, the median stands for all."""

_WORSE, _OTHER = "#f3d9d0", "#e4ecf3"
_LINE, _HEAD = 0.17, 1.4


def draw_costs(costs: pd.DataFrame) -> Drawn:
    """Every cost of every arm, persona by persona.

    Shaded: its 95 % interval against no persona excludes 0 (red where parsing, mass, fluency or the other task suffer,
    blue otherwise).
    """
    rows = summarised(costs)
    names = [name for name in COLUMNS if (rows["cost"] == name).any()]
    lines = {who: list(dict.fromkeys(part["label"])) for who, part in rows.groupby("persona", sort=False)}
    personas = _fitting({str(who): len(own) for who, own in lines.items()})
    n_lines = sum(len(lines[who]) + _HEAD for who in personas)
    more = "" if len(personas) == len(lines) else f" Further personas ({len(lines) - len(personas)}) are in the table."
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 1.1 + _LINE * n_lines))
        ax = figure.subplots()
        y, ticks, labels = 0.0, [], []
        for persona in personas:
            ax.text(-0.6, y, shown(persona), fontweight="bold", ha="left", va="center", fontsize=7.5)
            y += 1
            for label in lines[persona]:
                part = rows[(rows["persona"] == persona) & (rows["label"] == label)]
                _line(ax, {str(row["cost"]): row for row in part.to_dict("records")}, names, y)
                ticks.append(y)
                labels.append(label)
                y += 1
            y += 0.4
        _finish(ax, names, y, ticks, labels)
        keys = [Patch(color=_WORSE, label="worse than no persona (95 %)"), Patch(color=_OTHER, label="other (95 %)")]
        explained(figure, [*keys, said("fluency: log-probability per token (nats)")], ncols=3)
        return Drawn(laid_out(figure), rows.reset_index(drop=True), "What each arm costs", _CAPTION + more)


_CAPTION = (
    "Held-out cases. Parse rate, refusals, length and repetition of the written answers (share of four-token "
    "sequences that stood before in the same text); label mass and entropy of the next token at the prompt's end; "
    "fluency: mean log-probability per token of the arm's own texts, read by the model without a persona and under "
    "the persona's prompt (a prompted text is less likely without its prompt, which is no cost); the other task is one "
    "that no persona is about. Random directions, and other personas', stand as the median of theirs; n: how many, "
    "fewer where answers are written. Shaded: the 95 % interval of the paired difference from no persona excludes 0."
)


def _fitting(lines: Mapping[str, int]) -> list[str]:
    """The first personas whose rows fit on a page, one at least."""
    kept: list[str] = []
    height = 1.1
    for persona, n in lines.items():
        height += _LINE * (n + _HEAD)
        if kept and height > PAGE_HEIGHT:
            break
        kept.append(persona)
    return kept


def summarised(costs: pd.DataFrame) -> pd.DataFrame:
    """The rows that are drawn: one per persona, kind of arm and cost; of many arms of a kind the median."""
    parts = []
    sizes = costs.groupby(["persona", "kind", "cost"]).size().groupby(level=["persona", "kind"])
    fewest, most = sizes.min().to_dict(), sizes.max().to_dict()
    for (persona, kind, cost), part in costs.groupby(["persona", "kind", "cost"], sort=False):
        if kind not in (*ROWS, *RANDOM):
            continue
        label = _row_label(str(kind), int(fewest[persona, kind]), int(most[persona, kind]))
        if len(part) == 1:
            row = part.iloc[0].to_dict() | {"label": label}
        else:
            row = {"persona": persona, "kind": kind, "cost": cost, "value": part["value"].median(), "arms": len(part)}
            row |= {"label": label, "n": part["n"].median()}
        parts.append(row)
    table = pd.DataFrame(parts)
    table["order"] = [[*ROWS, *RANDOM].index(kind) for kind in table["kind"]]
    personas = list(dict.fromkeys(table["persona"]))
    table["who"] = [personas.index(persona) for persona in table["persona"]]
    return table.sort_values(["who", "order"], kind="stable").drop(columns=["who", "order"]).reset_index(drop=True)


def _row_label(kind: str, fewest: int, most: int) -> str:
    """What the row of a kind is called: one name, whichever of its costs have one arm and whichever many."""
    if most == 1:
        return KINDS[kind]
    many = {"isotropic": "random directions", "other_persona": "other personas' directions"}.get(kind, KINDS[kind])
    return f"{many} (n = {most})" if fewest == most else f"{many} (n = {fewest}–{most})"


def _line(ax: Axes, part: Mapping[str, Mapping[Hashable, Any]], names: list[str], y: float) -> None:
    for column, name in enumerate(names):
        if name not in part:
            continue
        row = part[name]
        against = "prompted" if name == "off_target_kl" else "none"  # a divergence from none is above 0 in any case
        away = (row.get(f"from_{against}_{end}", np.nan) for end in ("low", "high"))
        low, high = (float(one) for one in away)
        if (low > 0 or high < 0) and not (against == "prompted" and row["kind"] in ("none", "reworded")):
            own_voice = name == "fluency_none" and row["kind"] in ("prompted", "reworded")
            hue = _WORSE if _is_worse(name, low > 0) and not own_voice else _OTHER
            ax.fill_between([column - 0.46, column + 0.46], y - 0.46, y + 0.46, color=hue, lw=0)
        digits = 0 if name == "n_tokens" else 3 if name == "off_target_kl" else 2
        text = f"{row['value']:,.0f}" if digits == 0 else decimal(float(row["value"]), digits)
        ax.text(column, y, text, ha="center", va="center", fontsize=7, color=INK)


def _is_worse(name: str, higher: bool) -> bool:
    better_high = ("parse_rate", "label_mass", "fluency_none", "fluency_prompted", "off_target_accuracy")
    worse_high = ("refusal_rate", "repetition", "off_target_kl")
    return (name in better_high and not higher) or (name in worse_high and higher)


def _finish(ax: Axes, names: list[str], y: float, ticks: list[float], labels: list[str]) -> None:
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_ylim(y - 0.4, -0.7)
    ax.set_yticks(ticks, labels)
    ax.set_xticks(range(len(names)), [COLUMNS[name] for name in names])
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelcolor=SOFT)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
