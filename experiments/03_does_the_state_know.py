"""Does the residual stream at the end of the prompt know that the stated label will depart from the latent one?

    python experiments/03_does_the_state_know.py --model Qwen/Qwen2.5-7B-Instruct

At that position no word of the answer exists. A probe that reads the disagreement there, on case families that did not
fit it, shows that the departure is *foreseen*: some of what decides it is already in the prompt's state. It does not
show that this state causes it, nor that it is more than the logits say: a near tie is foreseen by its margin alone.
So each probe stands beside what needs no activation (margin, all label log-ratios, prompt length, who is speaking),
beside random features, and beside labels exchanged between whole cases.

Refuted by: no layer outside the band of the largest under the null (p_adjusted above .05); or a best layer no better
than the plain baselines; or a readout that fails on personas that did not fit it (then it knows who, not whether).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import probe
from probe.report.drawn import save
from probe.report.probes import draw_probes
from probe.stages.probes import Asked, probe_store, transfer

TARGETS = ("disagreement", "latent", "stated", "correct")
"""The question, and beside it what both labels and the stated one's truth are readable as."""

PLAIN = ("baseline: margin", "baseline: outputs", "baseline: length", "baseline: persona", "control: random features")


def settings(arguments: argparse.Namespace) -> list[str]:
    """What the options change in the study file; each model has a store of its own."""
    if not arguments.model:
        return list(arguments.set)
    name = Path(arguments.model).name.partition("@")[0]
    return [f"name=does-the-state-know-{name}", f"model.id={arguments.model}", *arguments.set]


def show(title: str, table: pd.DataFrame, refuted: str) -> None:
    """One finding: its numbers, and what would speak against it."""
    print(f"\n{title}\nRefuted by: {refuted}\n{table.round(3).to_string(index=False)}")


def main(arguments: argparse.Namespace) -> None:
    """Capture once, probe every layer, and set the best beside what needs no activation."""
    study = probe.Study.load(arguments.study, overrides=settings(arguments), limit=arguments.limit)
    store = probe.run(study)
    asked = Asked(targets=TARGETS, positions=("prompt_end",), permutations=arguments.permutations)
    found = probe_store(store, asked)

    layers = found.query("method == 'ridge' and target == 'disagreement'")
    columns = ["layer", "value", "low", "high", "null_high", "p_adjusted", "auprc", "base_rate", "balanced_accuracy"]
    show("Disagreement, by layer (AUROC)", layers[columns], "every value below null_high: nothing is foreseen")

    beside = found[found["method"].isin(PLAIN)].pivot(index="target", columns="method", values="value")
    best = found.query("method == 'ridge'").groupby("target", sort=False)["value"].max().rename("best layer")
    compared = beside.join(best).reset_index()
    show("Beside what needs no activation (AUROC)", compared, "best layer no better than outputs: the logits say it")

    moved = transfer(store, asked).query("target == 'disagreement'")
    matrix = moved.pivot(index="fitted_on", columns="judged_on", values="value").reset_index()
    show("Fitted on one persona, judged on another (AUROC)", matrix, "off the diagonal near .5: it knows who speaks")

    for name, drawn in draw_probes(found).items():
        print("\nfigure:", save(drawn, Path("figures") / study.name, name)[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--model", help="a hub id or a folder; default: the study file's")
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--limit", type=int, help="so many cases")
    parser.add_argument("--set", action="append", default=[], help="any setting of the study file: a.b=c")
    main(parser.parse_args())
