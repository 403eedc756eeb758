"""Cells of a store, ready to be read on a page. Knows stores and readings of answers; knows no HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from probe.report import ReadCell
from probe.report.numbers import decimal
from probe.report.sites import LOW_MASS, site_name
from probe.stages.parsing import Answer, answers
from probe.store import Store, View
from probe.values import DEFAULT_PARSER

ON_THE_PAGE = 120
"""Cells that stand on the report itself; a larger store has the others on pages beside it."""

MOST = 10_000
"""Cells that are written to pages at most."""

NEAR_TIE = 0.1
"""A margin (nats) between the two best labels that numerics alone can turn: bf16 moves logits by .02 to .06."""


def read_cells(store: Store) -> tuple[list[ReadCell], str]:
    """The cells of a store to read, in its order, and a sentence on which they are where they are not all.

    Beyond ``MOST`` cells those whose labels disagree or are missing come first.
    """
    table = store.table()
    kept, told = np.flatnonzero(table["given"] == ""), ""
    if (n := len(kept)) > MOST:
        parted = _parted(table)[kept]
        kept = np.sort(np.concatenate([kept[parted], kept[~parted]])[:MOST])
        told = (
            f"{MOST:,} of {n:,} cells are shown: {min(int(parted.sum()), MOST):,} of the "
            f"{int(parted.sum()):,} whose labels disagree or are missing, and the first of the others."
        )
    view = store.select()
    part = replace(view, rows=tuple(view.rows[i] for i in kept))
    texts, rows = part.texts(), table.iloc[kept].to_dict("records")
    entries = [row.located.entry for row in part.rows]
    found = _readings(store, part)
    options = store.manifest["labels"]["options"]
    sites, conditions = _sites(table, options), table["condition"].nunique() > 1
    cells = []
    for i, row in enumerate(rows):
        span, rule = _place(row, entries[i], found[i] if found else None)
        prompt = texts["prompt"].iloc[i]
        cells.append(
            ReadCell(
                persona=" + ".join(filter(None, (str(row["persona"]), str(row["intervention"])))),
                case=str(row["case"]),
                stratum=str(row["stratum"]),
                condition=str(row["condition"]) if conditions else "",
                prompt=prompt if isinstance(prompt, str) else "(the prompt's text was not kept)",
                answer=texts["gen_text"].iloc[i],
                status=str(row["status"]),
                target=str(row["target"]),
                latent=_label(row["y_latent"]),
                stated=_label(row["y_gen"]),
                span=span,
                rule=rule,
                reads={words: _probabilities(row, prefix, options) for words, prefix in sites.items()},
                notes=list(_notes(row)),
            )
        )
    return [replace(cell, reads={k: v for k, v in cell.reads.items() if v}) for cell in cells], told


def chosen(cells: list[ReadCell], most: int = ON_THE_PAGE) -> list[ReadCell]:
    """Cells to begin with: for each persona and stratum some that disagree or state nothing, and one that agrees."""
    if len(cells) <= most:
        return cells
    arms: dict[tuple[str, str], dict[str, list[int]]] = {}
    for i, cell in enumerate(cells):
        arms.setdefault((cell.persona, cell.stratum), {}).setdefault(cell.relation, []).append(i)
    each = max((most // len(arms) - 1) // 2, 1)
    kept = []
    for by_relation in arms.values():
        for relation, places in by_relation.items():
            kept += places[: 1 if relation == "agree" else each]
    return [cells[i] for i in sorted(kept)][: 2 * most]


def _parted(table: pd.DataFrame) -> np.ndarray:
    return np.array([a is None or a != b for a, b in zip(table["y_gen"], table["y_latent"], strict=True)], dtype=bool)


def _readings(store: Store, view: View) -> list[Answer]:
    """Every answer read by the built-in parser, for the rule; empty where the store does not name its letters."""
    labels = store.manifest["labels"]
    if len(labels.get("letters") or ()) != len(labels["options"]):
        return []
    return list(answers(store, DEFAULT_PARSER, view))


def _place(
    row: Mapping[object, object], entry: Mapping[str, object], found: Answer | None
) -> tuple[tuple[int, int] | None, str]:
    """Where the label stands in the answer, and by which rule, if that is how this table reads it."""
    if found is not None and (found.parsed.status, found.label) == (row["status"], _label(row["y_gen"])):
        return found.parsed.span, found.parsed.rule
    span = entry.get("span")
    if isinstance(span, list | tuple) and (entry["status"], entry["label"]) == (row["status"], _label(row["y_gen"])):
        return (int(span[0]), int(span[1])), ""
    return None, ""


def _sites(table: pd.DataFrame, options: list[str]) -> dict[str, str]:
    """Each captured answer site in words, with the prefix of its columns."""
    last = f"logp_{options[0]}"
    prefixes = [name.removesuffix(last) for name in table.columns if name.endswith(last)]
    known = {"": "prompt_end", "stated_": "answer"}
    found = [prefix for prefix in prefixes if not prefix.startswith("planned_")]
    return {site_name(known.get(prefix, prefix.rstrip("_"))): prefix for prefix in found}


def _probabilities(row: Mapping[object, object], prefix: str, options: list[str]) -> dict[str, float]:
    logp = [float(str(row[f"{prefix}logp_{option}"])) for option in options]
    return {} if np.isnan(logp).any() else dict(zip(options, np.exp(logp).tolist(), strict=True))


def _notes(row: Mapping[object, object]) -> Iterator[str]:
    margin, mass = (float(str(row.get(name, np.nan))) for name in ("margin", "label_mass"))
    if margin < NEAR_TIE:
        yield f"near tie (margin {decimal(margin)} nats)"
    if row.get("letter_first"):
        yield "the answer opens with its letter"
    if mass < LOW_MASS:
        yield f"labels hold {decimal(mass)} of the probability at the end of the prompt"
    if row.get("rotation") and row.get("letter"):
        yield f"written letter {row['letter']}"


def _label(value: object) -> str | None:
    return value if isinstance(value, str) else None
