"""Where does a persona live: in which layers, at which tokens, in which heads, and by which tokens does it come?

    python experiments/06_where_the_persona_lives.py --model Qwen/Qwen2.5-7B-Instruct --cases 24

The persona's activations are put into a base run with a neutral sentence of as many tokens in its place, and the other
way round (docs/patching.md). Each result says what would refute it. `--diagnostics`: the organism's planted personas.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import probe
from probe.report import save
from probe.report.patching import patch_figures
from probe.stages.analysis import save_tables
from probe.stages.patch import patch
from probe.stages.patch_request import PatchRequest

CELL = ["persona", "read", "group"]


def settings(arguments: argparse.Namespace) -> list[str]:
    """What the options change in the study file; each model and set of personas has a store of its own."""
    name, given = ["where-the-persona-lives"], []
    if arguments.model:
        name.append(Path(arguments.model).name.partition("@")[0])
        given.append(f"model.id={arguments.model}")
    if arguments.diagnostics:
        name.append("diagnostics")
        given.append("personas=['builtin:diagnostics', {id: none, text: null}]")
    return [f"name={'-'.join(name)}", *given, *arguments.set]


def show(title: str, table: pd.DataFrame, refuted: str) -> None:
    """One finding: its numbers, and what would speak against it."""
    print(f"\n{title}\nRefuted by: {refuted}\n{table.dropna(how='all').round(2).to_string()}")


def main(arguments: argparse.Namespace) -> None:
    """The effect, its place by layer and tokens, the blocks and heads that move it, its controls, and its paths."""
    study = probe.Study.load(arguments.study, overrides=settings(arguments), limit=arguments.limit)
    found = patch(study, PatchRequest(cases=arguments.cases))
    check = found.check[["persona", "read", "cells", "same"]]
    show("Cells that must be all or nothing", check, "a row that is not the same: then stop here")
    pooled = {name: getattr(found, name).query("stratum == 'all'") for name in ("totals", "effects", "paths")}
    totals, effects, paths = (table.query("outcome == 'expected_urgency'") for table in pooled.values())
    told = totals.set_index(["persona", "read", "quantity"])[["value", "low", "high", "n"]]
    show("What there is to recover", told, "a neutral sentence that lies as far from the base as the persona does")

    plain = effects.query("control == '' and direction == 'denoising'")
    lives = plain.query("stream == 'resid'").pivot(index=CELL, columns="layer", values="fraction")
    show("Lives where: share of the effect, by residual point", lives, "noising that takes nothing there: it is a copy")
    read = plain.query("stream == 'keys_values'").pivot(index=CELL, columns="layer", values="fraction")
    show("Read from there in which block (keys and values alone)", read, "no head of that block that fetches it, below")
    heads = plain.query("stream == 'head_out' and fraction > .1").set_index(["persona", "read", "layer", "head"])
    show("Fetched by which heads", heads.filter(like="fraction"), "noising them takes little")
    others = effects.query("control != '' and group in ['prompt_end', 'answer']")
    controls = others.pivot(index=[*CELL, "control"], columns="layer", values="fraction")
    show("Controls at the token that is read", controls, "a nonsense persona that brings as much as the persona")
    roles = paths.pivot(index=["persona", "read", "role"], columns="quantity", values="value")
    show("Comes by which tokens", roles, "first and last of other signs: then no single number says it")
    folder = Path("figures") / study.name
    save_tables(folder, found.tables)
    for name, drawn in patch_figures(found.effects, found.paths, found.totals, "expected_urgency").items():
        print("figure:", save(drawn, folder, name)[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--model", help="a hub id or a folder; default: the study file's")
    parser.add_argument("--diagnostics", action="store_true", help="the organism's personas of known place of action")
    parser.add_argument("--cases", type=int, default=24, help="so many cases are patched, spread over the strata")
    parser.add_argument("--limit", type=int, help="so many are captured")
    parser.add_argument("--set", action="append", default=[], help="any setting of the study file: a.b=c")
    main(parser.parse_args())
