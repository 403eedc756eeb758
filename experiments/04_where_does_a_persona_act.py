"""Where does a persona act: on the latent label, through the text that it writes, or directly at the answer?

    python experiments/04_where_does_a_persona_act.py --model Qwen/Qwen2.5-7B-Instruct --all-pairs

Beside each result stands what would refute its reading. On the organism, `--diagnostics` takes the personas whose place
of action was planted (docs/organism.md): there the answer is known. Captures resume; figures/<name>/ has the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import probe
from probe.report import save
from probe.report.swap import swap_figures
from probe.stages.analysis import save_tables
from probe.stages.relate import relate
from probe.stages.swap import text_swap


def settings(arguments: argparse.Namespace) -> list[str]:
    """What the options change in the study file; each model and set of personas has a store of its own."""
    name, given = ["where-personas-act"], []
    if arguments.model:
        name.append(Path(arguments.model).name.partition("@")[0])
        given.append(f"model.id={arguments.model}")
    if arguments.diagnostics:
        name.append("diagnostics")
        given.append("personas=['builtin:diagnostics', {id: none, text: null}]")
    return [f"name={'-'.join(name)}", *given, *arguments.set]


def show(title: str, table: pd.DataFrame, refuted: str) -> None:
    """One finding: its numbers, and what would speak against it."""
    print(f"\n{title}\nRefuted by: {refuted}\n{table.round(3).to_string()}")


def main(arguments: argparse.Namespace) -> None:
    """Where an effect is visible, and then, by exchanging texts, where it comes from."""
    study = probe.Study.load(arguments.study, overrides=settings(arguments), limit=arguments.limit)
    seen = relate(probe.run(study).table()).relation.set_index(["persona", "base", "stratum"])
    seen = seen[["verdict", "T", "L", "D", "D_low", "D_high", "n"]]
    show("Seen in the labels: T = L + D (stated = latent + added)", seen, "controls with the same verdicts")

    found = text_swap(study, all_pairs=arguments.all_pairs)
    show("Control: own texts read again", found.control, "a row that is not the same: then stop here")
    arm = ["persona", "stratum", "masked"]
    urgency = found.effects[found.effects["outcome"] == found.verdicts["outcome"].iloc[0]]
    told = urgency.pivot(index=arm, columns="quantity", values="value")
    told = told.join(found.verdicts.set_index(arm)["verdict"])
    show("Caused where: the texts exchanged", told, "text_first and text_last of other signs; controls that do as much")

    # Identified but without an effect through the text: style. An effect that falls with the words: parroting.
    bits = found.identifiability.query("stratum == 'all'").set_index(["among", "persona", "masked"])
    bits = bits[["value", "low", "high", "most", "floor", "right"]]
    show("Who wrote the text, in bits", bits, "bits below the floor of permuted authors")
    if len(found.parroting):
        fall = found.parroting.query("stratum == 'all'").set_index(["among", "persona"])
        fall = fall[["value", "low", "high", "share_masked"]]
        show("Bits that fall with the persona's words", fall, "nothing falls: style tells, not the words")

    folder = Path("figures") / study.name
    save_tables(folder, found.tables)
    for name, drawn in swap_figures(found.effects, found.verdicts, found.listener).items():
        print("figure:", save(drawn, folder, name)[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--model", help="a hub id or a folder; default: the study file's")
    parser.add_argument("--diagnostics", action="store_true", help="the organism's personas of known place of action")
    parser.add_argument("--all-pairs", action="store_true", help="every persona's texts under every persona")
    parser.add_argument("--limit", type=int, help="so many cases")
    parser.add_argument("--set", action="append", default=[], help="any setting of the study file: a.b=c")
    main(parser.parse_args())
