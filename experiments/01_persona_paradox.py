"""Do medical personas help in emergencies and hurt in primary care, and does the pooled figure hide it?

The triage study of The Persona Paradox (arXiv 2601.05376), rerun on any model, with our own wordings and cases:

    python experiments/01_persona_paradox.py --model Qwen/Qwen2.5-7B-Instruct --controls --rotations

Beside each result stands what would refute the paper's reading of it. Captures resume; figures/<name>/ has the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import probe

VARIANTS = {  # five wordings of each persona against thirty neutral ones; every letter for every option
    "controls": ("personas=['builtin:persona-paradox', 'builtin:controls']", "conditions.wordings=all"),
    "rotations": ("conditions.rotations=all",),
}


def settings(arguments: argparse.Namespace) -> list[str]:
    """What the options change in the study file; each variant has a store of its own."""
    chosen = [name for name in VARIANTS if getattr(arguments, name)]
    given = [setting for name in chosen for setting in VARIANTS[name]]
    if arguments.model:
        given.append(f"model.id={arguments.model}")
        chosen.insert(0, Path(arguments.model).name.partition("@")[0])
    return [f"name={'-'.join(['persona-paradox', *chosen])}", *given, *arguments.set]


def show(title: str, table: pd.DataFrame, refuted: str) -> None:
    """One finding: its numbers, and what would speak against it."""
    print(f"\n{title}\nRefuted by: {refuted}\n{table.round(3).to_string()}")


def main(arguments: argparse.Namespace) -> None:
    """Capture once, then read off behaviour, its noise floor, and the residual stream."""
    study = probe.Study.load(arguments.study, overrides=settings(arguments), limit=arguments.limit)
    store = probe.run(study)
    found = probe.tables(store)

    # The paper's claims were planned in the study file; their tests are adjusted among themselves. Paired by case.
    planned = found.comparisons.query("family == 'confirmatory'")
    columns = ["metric", "persona", "stratum", "difference", "low", "high", "n", "p", "p_holm", "test"]
    show("Planned contrasts with no persona", planned[columns], "an interval on the other side of 0")

    # Behaviour by acuity; the pool (all) can hide opposite signs.
    measured = found.metrics.set_index(["metric", "persona", "stratum"])
    names = ["accuracy", "accuracy_latent", "consistency_strict", "risk_propensity"]
    values = measured.loc[names, "value"].unstack(sort=False)
    show("Metrics by stratum", values, "role effects of one sign in both strata; bold and cautious apart in none")
    calibrated = measured.loc["ece", ["value", "null_low", "null_high"]]
    show("ECE, and its range in a calibrated model", calibrated, "ECE inside that range, or as large without persona")
    causes = found.causes.query("stratum == 'all'").pivot(index="persona", columns="cause", values="share")
    show("Why the two labels part: share of disagreements", causes, "preambles explain them: then CR is about form")

    # Is it the persona, or any change of wording? And is it the option, or its letter?
    if len(found.floor) and len(found.variance):
        floor = found.floor.query("metric == 'accuracy'")[["persona", "stratum", "effect", "floor_half", "k", "p_holm"]]
        show("Accuracy against k neutral wordings", floor, "|effect| below floor_half: rewording does as much")
        show("Variance of a cell", found.variance.query("metric == 'accuracy'"), "wording or seed outweighs persona")
    if len(found.positions):
        show("Share of each letter", found.positions.query("stratum == 'all'"), "far from null: letters, not options")

    print("\nreport:", probe.write_report(store, Path("figures") / study.name)[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--model", help="a hub id or a folder; default: the study file's")
    for variant in VARIANTS:
        parser.add_argument(f"--{variant}", action="store_true", help="add the noise floor, or every letter order")
    parser.add_argument("--limit", type=int, help="so many cases")
    parser.add_argument("--set", action="append", default=[], help="any setting of the study file: a.b=c")
    main(parser.parse_args())
