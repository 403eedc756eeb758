"""Does steering along a persona's direction do what its prompt does, to the right cases, and at what cost?

    python experiments/05_prompt_vs_steering.py --model Qwen/Qwen2.5-7B-Instruct --texts 50

Directions are fitted on training families, layer and strength settled on validation families, everything is judged on
held-out ones. Beside each result stands what would refute its reading. figures/<name>/ has the rest (docs/steering.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import probe
from probe.report import save
from probe.report.steering import steering_figures
from probe.stages.analysis import save_tables
from probe.stages.steer_scene import SteerRequest


def show(title: str, table: pd.DataFrame, refuted: str) -> None:
    """One finding: its numbers, and what would speak against it."""
    print(f"\n{title}\nRefuted by: {refuted}\n{table.round(3).to_string()}")


def main(arguments: argparse.Namespace) -> None:
    """Every persona prompted, reworded, steered and ablated, with all controls at their own equal dose."""
    overrides = [*arguments.set]
    if arguments.model:
        name = Path(arguments.model).name.partition("@")[0]
        overrides = [f"name=prompt-vs-steering-{name}", f"model.id={arguments.model}", *overrides]
    study = probe.Study.load(arguments.study, overrides=overrides, limit=arguments.limit)
    asked = SteerRequest(
        personas=tuple(arguments.persona),
        site=arguments.site,
        n_random=arguments.random,
        n_generated=min(arguments.random, 20),
        text_cases=arguments.texts,
    )
    found = probe.steer(study, asked)

    chosen = found.layers.query("chosen").set_index("persona")[["layer", "strength", "own_strength", "dose", "fit"]]
    show("Settled on validation cases", chosen, "a layer where the dose is hardly reached, or a fit near the others'")
    told = found.recovery.query("stratum == 'all' and kind not in ['isotropic', 'covariance', 'base_split']")
    told = told[told["outcome"] == told["outcome"].iloc[0]].set_index(["position", "persona", "kind", "arm"])
    columns = ["difference", "prompted", "recovered", "recovered_low", "recovered_high", "verdict", "broken"]
    show("What each arm recovers", told[columns], "other personas or the label contrast recover as much")
    arm = ["position", "persona", "quantity", "kind"]
    ranks = found.standing.query("stratum == 'all'").set_index(arm)[["steered", "median", "low", "high", "n", "p"]]
    show("Among its controls at equal dose", ranks, "a steered fit inside the controls' range; a ceiling as low")
    costs = found.costs[found.costs["kind"].isin(["none", "prompted", "steered", "ablated"])]
    costs = costs.pivot_table(index=["persona", "kind"], columns="cost", values="value", sort=False)
    show("What it costs", costs, "parse rate, mass or fluency that fall: then the model broke and was not persuaded")

    folder = Path("figures") / study.name
    save_tables(folder, found.tables)
    for name, drawn in steering_figures(found.tables, found.prefix).items():
        print("figure:", save(drawn, folder, name)[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--model", help="a hub id or a folder; default: the study file's")
    parser.add_argument("--persona", action="append", default=[], help="only this persona; repeatable")
    parser.add_argument("--site", default="prompt_end", help="prompt_end or answer")
    parser.add_argument("--random", type=int, default=99, help="random directions of each kind")
    parser.add_argument("--texts", type=int, default=100, help="held-out cases that are answered in writing; 0: none")
    parser.add_argument("--limit", type=int, help="so many cases")
    parser.add_argument("--set", action="append", default=[], help="any setting of the study file: a.b=c")
    main(parser.parse_args())
